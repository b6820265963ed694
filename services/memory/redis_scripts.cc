#include "services/memory/redis_scripts.h"

#include "absl/strings/str_cat.h"

namespace mneme::memory {
namespace {

constexpr char kTime[] = R"lua(
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
-- Lua would write large numbers with an exponent.
local function text(number) return string.format('%.0f', number) end
)lua";

constexpr char kSession[] = R"lua(
local head, turns, requests, fence = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function session()
  return redis.call('HMGET', head, 'version', 'model', 'created_ms', 'used_ms', 'messages',
    'tokens', 'title', 'policy', 'ttl_s')
end

local function make(model, title, policy, ttl_s, request)
  redis.call('HSET', head, 'version', 0, 'model', model, 'created_ms', text(now_ms), 'used_ms',
    text(now_ms), 'messages', 0, 'tokens', 0, 'title', title, 'policy', policy, 'ttl_s', ttl_s,
    'create_request', request)
  -- What an eviction of the head alone would have left. A full Redis refuses a script's first write,
  -- and takes all after it: this must not be the first.
  redis.call('DEL', turns, requests)
end

-- A session lasts for its ttl after the last use, and as long as its lease. All keys go in the same
-- millisecond.
local function prolong(default_ttl_s)
  local f = redis.call('HMGET', head, 'used_ms', 'ttl_s', 'lease_until_ms')
  local ttl_s = tonumber(f[2])
  if ttl_s == 0 then ttl_s = tonumber(default_ttl_s) end
  if ttl_s == 0 then
    for i = 1, 4 do redis.call('PERSIST', KEYS[i]) end
    return
  end
  local at = math.max(tonumber(f[1]) + ttl_s * 1000, tonumber(f[3] or '0'))
  for i = 1, 3 do redis.call('PEXPIREAT', KEYS[i], text(at)) end
  redis.call('PEXPIREAT', fence, text(at + 86400000))
end

local function give_back(token)
  if redis.call('HGET', head, 'lease_token') == token then
    redis.call('HDEL', head, 'lease_token', 'lease_holder', 'lease_request', 'lease_until_ms')
  end
end
)lua";

// ARGV: model, title, policy, ttl_s, request_id, default_ttl_s
constexpr char kCreate[] = R"lua(
if redis.call('EXISTS', head) == 1 then
  if ARGV[5] ~= '' and redis.call('HGET', head, 'create_request') == ARGV[5] then
    return {'same', session()}
  end
  return {'exists'}
end
make(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
prolong(ARGV[6])
return {'made', session()}
)lua";

// ARGV: "1" to have the turns too
constexpr char kGet[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
if ARGV[1] ~= '1' then return {'found', session(), {}} end
return {'found', session(), redis.call('LRANGE', turns, 0, -1)}
)lua";

constexpr char kRemove[] = R"lua(
if redis.call('DEL', head, turns, requests) == 0 then return {'missing'} end
redis.call('EXPIRE', fence, 86400)
return {'removed'}
)lua";

// ARGV: holder, lease_ms, parent version or '', '1' to create, model, request_id, '1' to have the
// turns, default_ttl_s
constexpr char kAcquire[] = R"lua(
local holder, parent, request = ARGV[1], ARGV[3], ARGV[6]
if request ~= '' then
  local version = redis.call('HGET', requests, request)
  if version then
    return {'committed', session(), redis.call('LINDEX', turns, version - 1)}
  end
end
local exists = redis.call('EXISTS', head) == 1
if not exists and ARGV[4] ~= '1' then return {'missing'} end
local f = redis.call('HMGET', head, 'version', 'lease_token', 'lease_holder', 'lease_request',
  'lease_until_ms')
local version = f[1] or '0'
if parent ~= '' and parent ~= version then return {'stale', version} end
if f[2] and tonumber(f[5]) > now_ms then
  -- The same holder asking for the same turn again has not heard the first answer.
  if request == '' or f[3] ~= holder or f[4] ~= request then
    return {'busy', f[3], text(tonumber(f[5]) - now_ms)}
  end
end
if not exists then make(ARGV[5], '', '', 0, '') end
local token = text(math.max(now_us, tonumber(redis.call('GET', fence) or '0') + 1))
redis.call('SET', fence, token)
redis.call('HSET', head, 'lease_token', token, 'lease_holder', holder, 'lease_request', request,
  'lease_until_ms', text(now_ms + ARGV[2]), 'used_ms', text(now_ms))
prolong(ARGV[8])
local history = {}
if ARGV[7] == '1' then history = redis.call('LRANGE', turns, 0, -1) end
return {'granted', session(), token, history}
)lua";

// ARGV: lease_token, lease_ms, default_ttl_s
constexpr char kRenew[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
if redis.call('HGET', head, 'lease_token') ~= ARGV[1] then return {'lost'} end
redis.call('HSET', head, 'lease_until_ms', text(now_ms + ARGV[2]))
prolong(ARGV[3])
return {'renewed'}
)lua";

// ARGV: lease_token
constexpr char kRelease[] = R"lua(
give_back(ARGV[1])
return {'released'}
)lua";

// ARGV: lease_token, parent version, bytes of the turn, its number of messages, of tokens, '1' if
// it replaces the token log, request_id, '1' to give the lease back, default_ttl_s
constexpr char kCommit[] = R"lua(
local token, parent, turn, request = ARGV[1], ARGV[2], ARGV[3], ARGV[7]
local function done(word, version)
  if ARGV[8] == '1' then give_back(token) end
  return {word, version}
end

if request ~= '' then
  local version = redis.call('HGET', requests, request)
  if version then return done('same', version) end
end
local f = redis.call('HMGET', head, 'version', 'lease_token', 'lease_until_ms')
if not f[1] then return {'missing'} end
local version = f[1]
if tonumber(parent) < tonumber(version) then
  -- The same turn again under the same lease: its first answer was lost.
  local stored = redis.call('LINDEX', turns, parent)
  local prefix = stored and string.match(stored, '^%d+:%d+:' .. token .. ':')
  if prefix and string.sub(stored, #prefix + 1) == turn then
    return done('same', text(parent + 1))
  end
end
if f[2] ~= token or tonumber(f[3]) <= now_ms then return {'lost'} end
if version ~= parent then return {'stale', version} end

version = text(version + 1)
redis.call('RPUSH', turns, version .. ':' .. text(now_ms) .. ':' .. token .. ':' .. turn)
if request ~= '' then redis.call('HSET', requests, request, version) end
redis.call('HSET', head, 'version', version, 'used_ms', text(now_ms))
redis.call('HINCRBY', head, 'messages', ARGV[4])
if ARGV[6] == '1' then
  redis.call('HSET', head, 'tokens', ARGV[5])
else
  redis.call('HINCRBY', head, 'tokens', ARGV[5])
end
prolong(ARGV[9])
return done('committed', version)
)lua";

// ARGV: session id, '1' to add it only where it is absent
constexpr char kTouchIndex[] = R"lua(
if ARGV[2] == '1' and redis.call('ZSCORE', KEYS[1], ARGV[1]) then return end
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
redis.call('ZADD', KEYS[1], text(math.max(now_us, tonumber(last or '0') + 1)), ARGV[1])
)lua";

// ARGV: least age in microseconds, then pairs of session id and the score it was seen with
constexpr char kDropFromIndex[] = R"lua(
for i = 2, #ARGV, 2 do
  local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or '-1')
  if score == tonumber(ARGV[i + 1]) and score + ARGV[1] <= now_us then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
)lua";

redis::Script OnSession(const char* body) {
  return redis::Script(absl::StrCat(kTime, kSession, body));
}

redis::Script OnIndex(const char* body) { return redis::Script(absl::StrCat(kTime, body)); }

}  // namespace

RedisScripts::RedisScripts()
    : create(OnSession(kCreate)),
      get(OnSession(kGet)),
      remove(OnSession(kRemove)),
      acquire(OnSession(kAcquire)),
      renew(OnSession(kRenew)),
      release(OnSession(kRelease)),
      commit(OnSession(kCommit)),
      touch_index(OnIndex(kTouchIndex)),
      drop_from_index(OnIndex(kDropFromIndex)) {}

}  // namespace mneme::memory
