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

// ARGV of all scripts on a family begin with: id of the data key; '*' fits any
constexpr char kFamily[] = R"lua(
local family, bodies = KEYS[1], KEYS[2]
local prefix = string.sub(family, 1, -2)
local key = redis.call('HGET', family, 'key')
if key and ARGV[1] ~= '*' and key ~= ARGV[1] then return {'rekeyed'} end

local function changed() redis.call('HINCRBY', family, 'epoch', 1) end

-- A chunk's record is its size and, if it is on disk, a space and the place of its file.
local function size_in(record) return tonumber(string.match(record, '^%d+')) end
local function place_in(record) return string.match(record, ' (%x+)$') end
local function is_had(field)
  if redis.call('EXISTS', prefix .. field) == 1 then return true end
  local record = redis.call('HGET', family, field)
  return record and place_in(record) ~= nil
end

-- Removes every key of the family; returns how many sessions it had.
local function drop_family()
  local sessions = 0
  for _, field in ipairs(redis.call('HKEYS', family)) do
    local kind = string.sub(field, 1, 2)
    if kind == 'c:' then
      redis.call('UNLINK', prefix .. field)
    elseif kind == 'p:' then
      local chunks = redis.call('HGET', prefix .. field, 'chunks') or ''
      for at = 1, #chunks, 40 do
        redis.call('UNLINK', prefix .. 'c:' .. string.sub(chunks, at, at + 31))
      end
      redis.call('UNLINK', prefix .. field)
    elseif kind == 's:' then
      local id = string.sub(field, 3)
      sessions = sessions + redis.call('UNLINK', prefix .. field)
      redis.call('UNLINK', prefix .. 'v:' .. id, prefix .. 'r:' .. id)
    end
  end
  redis.call('UNLINK', family, bodies)
  return sessions
end
)lua";

// ARGV of all scripts on a session go on with: session id, default_ttl_s
constexpr char kSession[] = R"lua(
local head, turns, requests = KEYS[3], KEYS[4], KEYS[5]
local session_id, default_ttl_s = ARGV[2], ARGV[3]

local function session_at(key)
  return redis.call('HMGET', key, 'version', 'model', 'created_ms', 'used_ms', 'messages',
    'tokens', 'title', 'policy', 'ttl_s', 'pinned', 'parent', 'parent_version', 'kv_bytes')
end
local function session() return session_at(head) end

local function register(id)
  if redis.call('HSET', family, 's:' .. id, 1) == 1 then redis.call('HINCRBY', family, 'n', 1) end
  redis.call('HSET', family, 'key', ARGV[1])
  -- A family that is dropped and made again must not come to an epoch that somebody remembers.
  redis.call('HSETNX', family, 'epoch', text(now_us))
  changed()
end

local function make(model, title, policy, ttl_s, request)
  redis.call('HSET', head, 'version', 0, 'model', model, 'created_ms', text(now_ms), 'used_ms',
    text(now_ms), 'messages', 0, 'tokens', 0, 'title', title, 'policy', policy, 'ttl_s', ttl_s,
    'create_request', request)
  -- What an eviction of the head alone would have left. A full Redis refuses a script's first write,
  -- and takes all after it: this must not be the first.
  redis.call('DEL', turns, requests)
  register(session_id)
end

-- A session lasts for its ttl after the last use, and as long as its lease; a pinned one for ever.
-- All keys go in the same millisecond.
local function prolong(head, turns, requests)
  local f = redis.call('HMGET', head, 'used_ms', 'ttl_s', 'lease_until_ms', 'pinned')
  local ttl_s = tonumber(f[2])
  if ttl_s == 0 then ttl_s = tonumber(default_ttl_s) end
  local keys = {head, turns, requests}
  if ttl_s == 0 or f[4] == '1' then
    for _, key in ipairs(keys) do redis.call('PERSIST', key) end
    return
  end
  local at = text(math.max(tonumber(f[1]) + ttl_s * 1000, tonumber(f[3] or '0')))
  for _, key in ipairs(keys) do redis.call('PEXPIREAT', key, at) end
end

-- Changes nothing, and is a write: the caller waits until replicas have it, and with it what a call
-- before this one wrote. A full Redis takes it.
local function write_again(head, turns, requests)
  local left_ms = redis.call('PTTL', head)
  if left_ms == -2 then return end
  if left_ms == -1 then redis.call('PEXPIREAT', head, text(now_ms + 60000)) end
  prolong(head, turns, requests)
end

local function give_back(token)
  if redis.call('HGET', head, 'lease_token') == token then
    redis.call('HDEL', head, 'lease_token', 'lease_holder', 'lease_request', 'lease_until_ms')
  end
end

-- Returns the fields of b that begin with `kind`, one for each turn; false where one is missing.
local function bodies_of(kind, ids)
  local result = {}
  for first = 1, #ids, 500 do
    local fields = {}
    for i = first, math.min(first + 499, #ids) do fields[#fields + 1] = kind .. ids[i] end
    for _, body in ipairs(redis.call('HMGET', bodies, unpack(fields))) do
      result[#result + 1] = body
    end
  end
  return result
end

-- Splits a turn's record.
local function record_of(id)
  local record = redis.call('HGET', bodies, 'h' .. id)
  if not record then return nil end
  local r = {}
  r.ms, r.token, r.mark, r.messages, r.tokens, r.snapshot_version, r.snapshot_tokens,
    r.snapshot_bytes, r.request = string.match(record,
      '^(%d+) (%d+) (%x*) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  return r
end

-- Returns the latest version up to `version` that has a snapshot, its turn's id and record; 0 if none
-- has. A record may speak of a snapshot that was dropped from this session alone, whose own record
-- then speaks of the one before.
local function snapshot_at(turns, version)
  while version > 0 do
    local id = redis.call('LINDEX', turns, version - 1)
    local r = id and record_of(id)
    if not r then return 0 end
    local at = tonumber(r.snapshot_version)
    if at == version then
      if redis.call('HEXISTS', bodies, 'm' .. id) == 0 then return 0 end
      return version, id, r
    end
    version = at
  end
  return 0
end

-- Sets what a head says of its version, from the records.
local function set_version(head, turns, version)
  local r = {messages = '0', tokens = '0'}
  if version > 0 then r = record_of(redis.call('LINDEX', turns, version - 1)) or r end
  local at, _, snapshot = snapshot_at(turns, version)
  redis.call('HSET', head, 'version', text(version), 'messages', r.messages, 'tokens', r.tokens,
    'snapshot_version', text(at), 'kv_bytes', snapshot and snapshot.snapshot_bytes or '0')
end

-- Returns the word that refuses a writer without the session's lease, or nil.
local function refused(token)
  local f = redis.call('HMGET', head, 'version', 'lease_token', 'lease_until_ms')
  if not f[1] then return 'missing' end
  if f[2] ~= token or tonumber(f[3]) <= now_ms then return 'lost' end
end

local function size_of(hexadecimal) return tonumber(hexadecimal, 16) end

-- Returns a staged snapshot: token, sealed manifest, chunks, tokens, bytes; or nil, and why it
-- cannot be attached under this lease.
local function staged_of(id, token)
  local staged = redis.call('HMGET', prefix .. 'p:' .. id, 'token', 'manifest', 'chunks', 'tokens',
    'bytes')
  if not staged[1] then return nil, 'gone' end
  if staged[1] ~= token then return nil, 'lease' end
  for at = 1, #staged[3], 40 do
    if not is_had('c:' .. string.sub(staged[3], at, at + 31)) then return nil, 'chunks' end
  end
  return staged, ''
end

-- Attached or not, it can be of no other turn.
local function unstage(id)
  redis.call('UNLINK', prefix .. 'p:' .. id)
  redis.call('HDEL', family, 'p:' .. id)
end

-- Makes a staged snapshot that of the turn `id`, and its chunks the family's.
local function attach(id, staged)
  redis.call('HSET', bodies, 'm' .. id, staged[2])
  local added = 0
  for at = 1, #staged[3], 40 do
    local field = 'c:' .. string.sub(staged[3], at, at + 31)
    local size = size_of(string.sub(staged[3], at + 32, at + 39))
    redis.call('PERSIST', prefix .. field)
    if redis.call('HSETNX', family, field, size) == 1 then
      added = added + size
    elseif place_in(redis.call('HGET', family, field)) and
        redis.call('EXISTS', prefix .. field) == 1 then
      -- It was sent again: here it is read faster, and the sweep removes its file.
      redis.call('HSET', family, field, size)
      redis.call('HINCRBY', family, 'disk', -size)
    end
  end
  redis.call('HINCRBY', family, 'kv', added)
end

local function set_record(id, r)
  redis.call('HSET', bodies, 'h' .. id, table.concat({r.ms, r.token, r.mark, r.messages, r.tokens,
    r.snapshot_version, r.snapshot_tokens, r.snapshot_bytes, r.request}, ' '))
end
)lua";

// ARGV: model, title, policy, ttl_s, request_id
constexpr char kCreate[] = R"lua(
if redis.call('EXISTS', head) == 1 then
  if ARGV[8] ~= '' and redis.call('HGET', head, 'create_request') == ARGV[8] then
    write_again(head, turns, requests)
    return {'same', session()}
  end
  return {'exists'}
end
make(ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
prolong(head, turns, requests)
return {'made', session()}
)lua";

// ARGV: "1" to have the turns too
constexpr char kGet[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
if ARGV[4] ~= '1' then return {'found', session(), {}, {}} end
local ids = redis.call('LRANGE', turns, 0, -1)
return {'found', session(), ids, bodies_of('t', ids)}
)lua";

constexpr char kRemove[] = R"lua(
if redis.call('DEL', head, turns, requests) == 0 then return {'missing'} end
if redis.call('HDEL', family, 's:' .. session_id) == 1 then
  if redis.call('HINCRBY', family, 'n', -1) <= 0 then
    drop_family()
    return {'removed', '1'}
  end
end
changed()
return {'removed', '0'}
)lua";

// ARGV: holder, lease_ms, parent version or '', '1' to create, model, request_id, '1' to have the
// turns, '1' if this is no use
constexpr char kAcquire[] = R"lua(
local holder, parent, request = ARGV[4], ARGV[6], ARGV[9]
if request ~= '' then
  local version = redis.call('HGET', requests, request)
  if version then
    write_again(head, turns, requests)
    local id = redis.call('LINDEX', turns, version - 1) or ''
    return {'committed', session(), version, id, redis.call('HGET', bodies, 'h' .. id),
      redis.call('HGET', bodies, 't' .. id)}
  end
end
local exists = redis.call('EXISTS', head) == 1
if not exists and ARGV[7] ~= '1' then return {'missing'} end
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
if not exists then make(ARGV[8], '', '', 0, '') end
local fence = tonumber(redis.call('HGET', family, 'fence') or '0')
local token = text(math.max(now_us, fence + 1))
redis.call('HSET', family, 'fence', token)
redis.call('HSET', head, 'lease_token', token, 'lease_holder', holder, 'lease_request', request,
  'lease_until_ms', text(now_ms + ARGV[5]))
if ARGV[11] ~= '1' then redis.call('HSET', head, 'used_ms', text(now_ms)) end
prolong(head, turns, requests)
local ids, texts = {}, {}
if ARGV[10] == '1' then
  ids = redis.call('LRANGE', turns, 0, -1)
  texts = bodies_of('t', ids)
end
local hot = redis.call('HMGET', head, 'executor', 'snapshot_version')
return {'granted', session(), token, ids, texts, hot[1] or '', hot[2] or '0'}
)lua";

// ARGV: lease_token, lease_ms
constexpr char kRenew[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
if redis.call('HGET', head, 'lease_token') ~= ARGV[4] then return {'lost'} end
redis.call('HSET', head, 'lease_until_ms', text(now_ms + ARGV[5]))
prolong(head, turns, requests)
return {'renewed'}
)lua";

// ARGV: lease_token
constexpr char kRelease[] = R"lua(
give_back(ARGV[4])
return {'released'}
)lua";

// ARGV: lease_token, parent version, turn id, sealed text, mark, its number of messages, of tokens,
// '1' if it replaces the token log, request_id, '1' to give the lease back, '1' if the turn id is
// that of a staged snapshot, executor
constexpr char kCommit[] = R"lua(
local token, parent, id, mark, request = ARGV[4], ARGV[5], ARGV[6], ARGV[8], ARGV[12]
local function done(...)
  if ARGV[13] == '1' then give_back(token) end
  return {...}
end
local function same(version, reason)
  write_again(head, turns, requests)
  return done('same', version, reason, '')
end

-- Why a turn that was committed before has no snapshot, should this call have brought one.
local function lost(version)
  if ARGV[14] ~= '1' then return '' end
  local r = record_of(redis.call('LINDEX', turns, version - 1) or '')
  return r and r.snapshot_version == text(version) and '' or 'gone'
end

if request ~= '' then
  local version = redis.call('HGET', requests, request)
  if version then return same(version, lost(version)) end
end
local f = redis.call('HMGET', head, 'version', 'messages', 'tokens', 'snapshot_version', 'kv_bytes')
if not f[1] then return {'missing'} end
local version = f[1]
if tonumber(parent) < tonumber(version) then
  -- The same turn again under the same lease: its first answer was lost.
  local stored = redis.call('LINDEX', turns, parent)
  local r = stored and record_of(stored)
  if r and r.token == token and r.mark == mark then
    return same(text(parent + 1), lost(parent + 1))
  end
end
local word = refused(token)
if word then return {word} end
if version ~= parent then return {'stale', version} end
if redis.call('HEXISTS', bodies, 'h' .. id) == 1 then return {'taken'} end

-- Whether the snapshot can be attached is known before anything is written.
local reason, staged = '', nil
if ARGV[14] == '1' then
  staged, reason = staged_of(id, token)
end

local messages = text(f[2] + ARGV[9])
local tokens = text((ARGV[11] == '1' and 0 or f[3]) + ARGV[10])
local snapshot_version, kv_bytes = f[4] or '0', f[5] or '0'
version = text(version + 1)
local own = '0 0'
if staged then
  snapshot_version, kv_bytes = version, staged[5]
  own = staged[4] .. ' ' .. staged[5]
end
redis.call('HSET', bodies, 't' .. id, ARGV[7], 'h' .. id, text(now_ms) .. ' ' .. token .. ' ' ..
  mark .. ' ' .. messages .. ' ' .. tokens .. ' ' .. snapshot_version .. ' ' .. own .. ' ' ..
  request)
if ARGV[14] == '1' then unstage(id) end
if staged then attach(id, staged) end
redis.call('RPUSH', turns, id)
if request ~= '' then redis.call('HSET', requests, request, version) end
redis.call('HSET', head, 'version', version, 'used_ms', text(now_ms), 'messages', messages,
  'tokens', tokens, 'snapshot_version', snapshot_version, 'kv_bytes', kv_bytes, 'executor',
  ARGV[15])
changed()
prolong(head, turns, requests)
return done('committed', version, reason, redis.call('HGET', family, 'kv') or '0')
)lua";

// ARGV: lease_token, names of chunks, ms that those live that wait for their turn. Answers of each
// chunk one letter: s stored in Redis, l listed by a turn and not there (on disk, or lost), n new
constexpr char kMayStage[] = R"lua(
local word = refused(ARGV[4])
if word then return {word} end
local states, names = {}, ARGV[5]
for at = 1, #names, 32 do
  local field = 'c:' .. string.sub(names, at, at + 31)
  -- A chunk of another snapshot that waits for its turn must not expire before this one's.
  redis.call('PEXPIRE', prefix .. field, ARGV[6], 'GT')
  local state = 'n'
  if redis.call('EXISTS', prefix .. field) == 1 then
    state = 's'
  elseif redis.call('HEXISTS', family, field) == 1 then
    state = 'l'
  end
  states[#states + 1] = state
end
return {'yes', table.concat(states)}
)lua";

// ARGV: lease_token, snapshot id, sealed manifest, chunks, tokens, bytes, ms until it expires
constexpr char kStage[] = R"lua(
local word = refused(ARGV[4])
if word then return {word} end
local chunks = ARGV[7]
for at = 1, #chunks, 40 do
  if not is_had('c:' .. string.sub(chunks, at, at + 31)) then
    return {'unknown', text((at - 1) / 40)}
  end
end
local staged = prefix .. 'p:' .. ARGV[5]
redis.call('HSET', staged, 'token', ARGV[4], 'manifest', ARGV[6], 'chunks', chunks, 'tokens',
  ARGV[8], 'bytes', ARGV[9])
redis.call('PEXPIRE', staged, ARGV[10])
for at = 1, #chunks, 40 do
  redis.call('PEXPIRE', prefix .. 'c:' .. string.sub(chunks, at, at + 31), ARGV[10], 'GT')
end
redis.call('HSET', family, 'p:' .. ARGV[5], 1)
changed()
return {'staged'}
)lua";

// ARGV: version; 0: the head
constexpr char kFind[] = R"lua(
local f = redis.call('HMGET', head, 'version', 'snapshot_version')
if not f[1] then return {'missing'} end
local version, at = tonumber(ARGV[4]), tonumber(f[2] or '0')
if version > tonumber(f[1]) then return {'range', f[1]} end
if version > 0 then at = snapshot_at(turns, version) end
if at == 0 then return {'none'} end
local id = redis.call('LINDEX', turns, at - 1)
local manifest = id and redis.call('HGET', bodies, 'm' .. id)
if not manifest then return {'none'} end
return {'found', text(at), id, manifest}
)lua";

// KEYS go on with those of the new session. ARGV: version or '', its id, request_id, sealed title
constexpr char kFork[] = R"lua(
local new_head, new_turns, new_requests = KEYS[6], KEYS[7], KEYS[8]
if redis.call('EXISTS', new_head) == 1 then
  if ARGV[6] ~= '' and redis.call('HGET', new_head, 'create_request') == ARGV[6] then
    write_again(new_head, new_turns, new_requests)
    return {'same', session_at(new_head)}
  end
  return {'exists'}
end
local f = redis.call('HMGET', head, 'version', 'model', 'policy', 'ttl_s', 'executor')
if not f[1] then return {'missing'} end
local version = tonumber(ARGV[4] ~= '' and ARGV[4] or f[1])
if version > tonumber(f[1]) then return {'range', f[1]} end
redis.call('HSET', new_head, 'model', f[2], 'created_ms', text(now_ms), 'used_ms', text(now_ms),
  'title', ARGV[7], 'policy', f[3], 'ttl_s', f[4], 'create_request', ARGV[6], 'parent', session_id,
  'parent_version', text(version))
redis.call('DEL', new_turns, new_requests)
if version > 0 then
  redis.call('COPY', turns, new_turns)
  redis.call('LTRIM', new_turns, 0, version - 1)
end
set_version(new_head, new_turns, version)
if version == tonumber(f[1]) and f[5] then redis.call('HSET', new_head, 'executor', f[5]) end
register(ARGV[5])
prolong(new_head, new_turns, new_requests)
return {'made', session_at(new_head)}
)lua";

// ARGV: version
constexpr char kRewind[] = R"lua(
local f = redis.call('HMGET', head, 'version', 'lease_holder', 'lease_until_ms')
if not f[1] then return {'missing'} end
if f[3] and tonumber(f[3]) > now_ms then
  return {'busy', f[2], text(tonumber(f[3]) - now_ms)}
end
local version = tonumber(ARGV[4])
if version > tonumber(f[1]) then return {'range', f[1]} end
if version < tonumber(f[1]) then
  for _, id in ipairs(redis.call('LRANGE', turns, version, -1)) do
    local r = record_of(id)
    if r and r.request ~= '' then redis.call('HDEL', requests, r.request) end
  end
  -- Whoever had a lease that ran out computed a turn that does not exist any more.
  redis.call('HDEL', head, 'lease_token', 'lease_holder', 'lease_request', 'lease_until_ms',
    'executor')
  if version == 0 then
    redis.call('DEL', turns)
  else
    redis.call('LTRIM', turns, 0, version - 1)
  end
  set_version(head, turns, version)
  changed()
end
redis.call('HSET', head, 'used_ms', text(now_ms))
prolong(head, turns, requests)
return {'rewound', session()}
)lua";

// ARGV: fields of the head and their values
constexpr char kUpdate[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
for i = 4, #ARGV, 2 do redis.call('HSET', head, ARGV[i], ARGV[i + 1]) end
prolong(head, turns, requests)
return {'updated', session()}
)lua";

// ARGV: model, sealed title, policy, ttl_s, created_ms, pinned, chunks, then of each turn: its id,
// sealed text, record, sealed manifest or '', request_id
constexpr char kTakeIn[] = R"lua(
if redis.call('EXISTS', head) == 1 then return {'exists'} end
local chunks = ARGV[10]
for at = 1, #chunks, 40 do
  if redis.call('EXISTS', prefix .. 'c:' .. string.sub(chunks, at, at + 31)) == 0 then
    return {'unknown', text((at - 1) / 40)}
  end
end
make(ARGV[4], ARGV[5], ARGV[6], ARGV[7], '')
local version = 0
for i = 11, #ARGV, 5 do
  local id = ARGV[i]
  version = version + 1
  redis.call('HSET', bodies, 't' .. id, ARGV[i + 1], 'h' .. id, ARGV[i + 2])
  if ARGV[i + 3] ~= '' then redis.call('HSET', bodies, 'm' .. id, ARGV[i + 3]) end
  redis.call('RPUSH', turns, id)
  if ARGV[i + 4] ~= '' then redis.call('HSET', requests, ARGV[i + 4], text(version)) end
end
local added = 0
for at = 1, #chunks, 40 do
  local field = 'c:' .. string.sub(chunks, at, at + 31)
  local size = size_of(string.sub(chunks, at + 32, at + 39))
  redis.call('PERSIST', prefix .. field)
  if redis.call('HSETNX', family, field, size) == 1 then added = added + size end
end
local kv = redis.call('HINCRBY', family, 'kv', added)
set_version(head, turns, version)
redis.call('HSET', head, 'created_ms', ARGV[8], 'pinned', ARGV[9])
prolong(head, turns, requests)
return {'made', session(), text(kv)}
)lua";

// ARGV: lease_token, version, the version whose snapshot is replaced, its turn id, id of the staged
// snapshot or '' (it stays), the turn's text sealed for that id, policy, '1' to set it, '1' to drop
// older snapshots. The turn gets a new id: forks have the old one, and what it had.
constexpr char kReplace[] = R"lua(
local token, version, at, old, id = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
local word = refused(token)
if word then return {word} end
local f = redis.call('HMGET', head, 'version', 'snapshot_version')
if f[1] ~= version then return {'stale', f[1]} end
if f[2] ~= text(at) or redis.call('LINDEX', turns, at - 1) ~= old or
    redis.call('HEXISTS', bodies, 'm' .. old) == 0 then
  return {'gone', 'snapshot'}
end
if id ~= '' then
  local staged, reason = staged_of(id, token)
  if not staged then
    unstage(id)
    return {'gone', reason}
  end
  redis.call('HSET', bodies, 't' .. id, ARGV[9])
  local r = record_of(old)
  r.snapshot_tokens, r.snapshot_bytes = staged[4], staged[5]
  set_record(id, r)
  unstage(id)
  attach(id, staged)
  redis.call('LSET', turns, at - 1, id)
end
if ARGV[11] == '1' then redis.call('HSET', head, 'policy', ARGV[10]) end

local dropped = 0
if ARGV[12] == '1' and at > 1 then
  local shared = {}
  for _, field in ipairs(redis.call('HKEYS', family)) do
    if string.sub(field, 1, 2) == 's:' and string.sub(field, 3) ~= session_id then
      for _, turn in ipairs(redis.call('LRANGE', prefix .. 'v:' .. string.sub(field, 3), 0, -1)) do
        shared[turn] = true
      end
    end
  end
  local last = 0  -- the version of the last snapshot that stays
  for v, turn in ipairs(redis.call('LRANGE', turns, 0, at - 2)) do
    local r = record_of(turn)
    if r and shared[turn] then
      if r.snapshot_version == text(v) then last = v end
    elseif r and r.snapshot_version ~= text(last) then
      if r.snapshot_version == text(v) then
        dropped = dropped + redis.call('HDEL', bodies, 'm' .. turn)
      end
      r.snapshot_version, r.snapshot_tokens, r.snapshot_bytes = text(last), '0', '0'
      set_record(turn, r)
    end
  end
end

set_version(head, turns, tonumber(version))
give_back(token)
changed()
prolong(head, turns, requests)
return {'replaced', session(), text(dropped), redis.call('HGET', family, 'kv') or '0'}
)lua";

constexpr char kDescribe[] = R"lua(
if redis.call('EXISTS', head) == 0 then return {'missing'} end
local ids = redis.call('LRANGE', turns, 0, -1)
local f = redis.call('HMGET', head, 'lease_until_ms', 'executor')
local leased = f[1] and tonumber(f[1]) > now_ms and '1' or '0'
return {'found', session(), ids, bodies_of('h', ids), leased, f[2] or ''}
)lua";

// Drops what has expired and lists the rest. ids are those of all turns of all sessions, some of
// them often.
constexpr char kMark[] = R"lua(
local registry = redis.call('HGETALL', family)
if #registry == 0 then
  -- Without its registry nothing of a family can be found again.
  redis.call('UNLINK', bodies)
  return {'gone'}
end
local sessions, is_changed, epoch, swept, kv = {}, false, '0', '', '0'
for i = 1, #registry, 2 do
  local field, value = registry[i], registry[i + 1]
  local kind = string.sub(field, 1, 2)
  if kind == 's:' then
    if redis.call('EXISTS', prefix .. field) == 1 then
      sessions[#sessions + 1] = string.sub(field, 3)
    else
      redis.call('HDEL', family, field)
      redis.call('HINCRBY', family, 'n', -1)
      is_changed = true
    end
  elseif kind == 'p:' and redis.call('EXISTS', prefix .. field) == 0 then
    redis.call('HDEL', family, field)
    is_changed = true
  elseif field == 'epoch' then
    epoch = value
  elseif field == 'swept' then
    swept = value
  elseif field == 'kv' then
    kv = value
  end
end
if #sessions == 0 then
  drop_family()
  return {'dropped'}
end
if is_changed then
  epoch = text(redis.call('HINCRBY', family, 'epoch', 1))
elseif epoch == swept then
  return {'clean', kv}
end
local ids = {}
for _, id in ipairs(sessions) do
  for _, turn in ipairs(redis.call('LRANGE', prefix .. 'v:' .. id, 0, -1)) do
    ids[#ids + 1] = turn
  end
end
return {'marked', epoch, registry, redis.call('HKEYS', bodies), ids}
)lua";

// ARGV: epoch that was marked at, then what is dead: "c:<name>", or "b:" and a field of b
constexpr char kSweep[] = R"lua(
if redis.call('HGET', family, 'epoch') ~= ARGV[2] then return {'moved'} end
for i = 3, #ARGV do
  local kind, field = string.sub(ARGV[i], 1, 2), ARGV[i]
  if kind == 'b:' then
    redis.call('HDEL', bodies, string.sub(field, 3))
  else
    local record = redis.call('HGET', family, field)
    redis.call('UNLINK', prefix .. field)
    redis.call('HDEL', family, field)
    if record then
      redis.call('HINCRBY', family, 'kv', -size_in(record))
      if place_in(record) then redis.call('HINCRBY', family, 'disk', -size_in(record)) end
    end
  end
end
redis.call('HSET', family, 'swept', ARGV[2])
return {'swept', redis.call('HGET', family, 'kv') or '0'}
)lua";

constexpr char kInUse[] = R"lua(
-- Whether a turn is being computed on the family, or one of its sessions is pinned.
local function in_use(may_be_pinned)
  for _, field in ipairs(redis.call('HKEYS', family)) do
    if string.sub(field, 1, 2) == 's:' then
      local f = redis.call('HMGET', prefix .. field, 'pinned', 'lease_until_ms')
      if f[1] == '1' and not may_be_pinned then return true end
      if f[2] and tonumber(f[2]) > now_ms then return true end
    end
  end
  return false
end
)lua";

// Drops all snapshots of a family that nobody uses just now.
constexpr char kShrink[] = R"lua(
if in_use(false) then return {'busy'} end
for _, field in ipairs(redis.call('HKEYS', family)) do
  local kind = string.sub(field, 1, 2)
  if kind == 'c:' then
    redis.call('UNLINK', prefix .. field)
    redis.call('HDEL', family, field)
  elseif kind == 's:' and redis.call('EXISTS', prefix .. field) == 1 then
    redis.call('HSET', prefix .. field, 'snapshot_version', 0, 'kv_bytes', 0)
  end
end
for _, field in ipairs(redis.call('HKEYS', bodies)) do
  if string.sub(field, 1, 1) == 'm' then redis.call('HDEL', bodies, field) end
end
local f = redis.call('HMGET', family, 'kv', 'disk')
redis.call('HSET', family, 'kv', 0, 'disk', 0)
changed()
return {'shrunk', text((f[1] or 0) - (f[2] or 0)), text(f[2] or 0)}
)lua";

// ARGV: epoch that the records were read at, '1' if pinned sessions are not spared, then of each
// chunk: its name, and the place of its file. Without any it only answers whether it would.
constexpr char kDemote[] = R"lua(
if redis.call('HGET', family, 'epoch') ~= ARGV[2] then return {'moved'} end
if in_use(ARGV[3] == '1') then return {'busy'} end
local bytes = 0
for i = 4, #ARGV, 2 do
  local field = 'c:' .. ARGV[i]
  local record = redis.call('HGET', family, field)
  if record and not place_in(record) and redis.call('UNLINK', prefix .. field) == 1 then
    redis.call('HSET', family, field, record .. ' ' .. ARGV[i + 1])
    bytes = bytes + size_in(record)
  end
end
if bytes > 0 then redis.call('HINCRBY', family, 'disk', bytes) end
return {'demoted', text(bytes)}
)lua";

// ARGV: chunk's name, the place it was read from, sealed chunk
constexpr char kPromote[] = R"lua(
local field = 'c:' .. ARGV[2]
local record = redis.call('HGET', family, field)
if not record or place_in(record) ~= ARGV[3] then return {'moved'} end
redis.call('SET', prefix .. field, ARGV[4])
redis.call('HSET', family, field, text(size_in(record)))
redis.call('HINCRBY', family, 'disk', -size_in(record))
changed()
return {'promoted', text(size_in(record))}
)lua";

// ARGV: chunk's name, and the place where its file is gone or damaged. The chunk is then one that
// Redis should have and has not: who sends it again heals what lists it.
constexpr char kLose[] = R"lua(
local field = 'c:' .. ARGV[2]
local record = redis.call('HGET', family, field)
if not record or place_in(record) ~= ARGV[3] then return {'moved'} end
redis.call('HSET', family, field, text(size_in(record)))
redis.call('HINCRBY', family, 'disk', -size_in(record))
changed()
return {'lost'}
)lua";

// ARGV: names of chunks, 32 digits each, of a snapshot that was given up. Those that a turn, or a
// snapshot that waits for its turn, lists by now are no longer that one's alone.
constexpr char kDiscard[] = R"lua(
local listed = {}
for _, field in ipairs(redis.call('HKEYS', family)) do
  local kind = string.sub(field, 1, 2)
  if kind == 'c:' then
    listed[field] = true
  elseif kind == 'p:' then
    local chunks = redis.call('HGET', prefix .. field, 'chunks') or ''
    for at = 1, #chunks, 40 do listed['c:' .. string.sub(chunks, at, at + 31)] = true end
  end
end
for at = 1, #ARGV[2], 32 do
  local field = 'c:' .. string.sub(ARGV[2], at, at + 31)
  if not listed[field] then redis.call('UNLINK', prefix .. field) end
end
return {'discarded'}
)lua";

// ARGV: of each file its chunk's name and its place. Answers the places that no record names. A
// demotion that has written one of these files and not yet moved its record finds another epoch.
constexpr char kUnused[] = R"lua(
local unused = {}
for i = 2, #ARGV, 2 do
  local record = redis.call('HGET', family, 'c:' .. ARGV[i])
  if not record or place_in(record) ~= ARGV[i + 1] then unused[#unused + 1] = ARGV[i + 1] end
end
if #unused > 0 and redis.call('EXISTS', family) == 1 then changed() end
return {'unused', unused}
)lua";

constexpr char kDrop[] = R"lua(
return {'dropped', drop_family()}
)lua";

// KEYS of scripts on a tenant: sessions, families, usage
constexpr char kTenant[] = R"lua(
local sessions, families, usage = KEYS[1], KEYS[2], KEYS[3]

local function move_to_front(id)
  local last = redis.call('ZREVRANGE', sessions, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', sessions, text(math.max(now_us, tonumber(last or '0') + 1)), id)
end

local function use(family, bytes)
  local before = tonumber(redis.call('HGET', usage, family) or '0')
  if bytes then
    redis.call('HSET', usage, family, bytes)
  else
    redis.call('HDEL', usage, family)
  end
  local change = (bytes or 0) - before
  if change ~= 0 then redis.call('HINCRBY', usage, 'total', change) end
  if redis.call('HLEN', usage) == 1 then redis.call('HDEL', usage, 'total') end
end
)lua";

// ARGV: session id, the family that it gets if it has none, the most sessions that there may be, or
// 0
constexpr char kClaim[] = R"lua(
local family = redis.call('HGET', families, ARGV[1])
if not family then
  local most = tonumber(ARGV[3])
  if most > 0 and redis.call('HLEN', families) >= most then return {'full'} end
  family = ARGV[2]
end
-- Known or not: the caller waits until replicas have it, and for that it must be a write.
redis.call('HSET', families, ARGV[1], family)
redis.call('HSETNX', usage, family, 0)
if not redis.call('ZSCORE', sessions, ARGV[1]) then move_to_front(ARGV[1]) end
return {'family', family}
)lua";

// ARGV: session id, its family, the family's kv or ''
constexpr char kTouch[] = R"lua(
local known = redis.call('HGET', families, ARGV[1])
if known and known ~= ARGV[2] then return {'other'} end
if not known then
  redis.call('HSET', families, ARGV[1], ARGV[2])
  redis.call('HSETNX', usage, ARGV[2], 0)
end
move_to_front(ARGV[1])
if ARGV[3] ~= '' then use(ARGV[2], tonumber(ARGV[3])) end
return {'ok'}
)lua";

// ARGV: least age in microseconds, then of each session: its id, family ('' if it has none) and the
// score it was seen with
constexpr char kUnlink[] = R"lua(
for i = 2, #ARGV, 3 do
  local score = tonumber(redis.call('ZSCORE', sessions, ARGV[i]) or '-1')
  local family = redis.call('HGET', families, ARGV[i]) or ''
  if score == tonumber(ARGV[i + 2]) and family == ARGV[i + 1] and score + ARGV[1] <= now_us then
    redis.call('ZREM', sessions, ARGV[i])
    redis.call('HDEL', families, ARGV[i])
  end
end
)lua";

// ARGV: family, its kv
constexpr char kUse[] = R"lua(
if redis.call('HEXISTS', usage, ARGV[1]) == 1 then use(ARGV[1], tonumber(ARGV[2])) end
)lua";

// ARGV: families that have no key any more
constexpr char kDropUnused[] = R"lua(
for _, family in ipairs(ARGV) do use(family, nil) end
)lua";

redis::Script OnSession(const char* body, redis::Ack ack = redis::Ack::kServer) {
  return redis::Script(absl::StrCat(kTime, kFamily, kSession, body), ack);
}

// What a caller is told has happened is not undone by a failover.
redis::Script Durable(const char* body) { return OnSession(body, redis::Ack::kReplicas); }

redis::Script OnFamily(const char* body, const char* rest = "") {
  return redis::Script(absl::StrCat(kTime, kFamily, body, rest));
}

redis::Script OnTenant(const char* body, redis::Ack ack = redis::Ack::kServer) {
  return redis::Script(absl::StrCat(kTime, kTenant, body), ack);
}

}  // namespace

RedisScripts::RedisScripts()
    : create(Durable(kCreate)),
      get(OnSession(kGet)),
      remove(Durable(kRemove)),
      acquire(Durable(kAcquire)),
      renew(OnSession(kRenew)),
      release(OnSession(kRelease)),
      commit(Durable(kCommit)),
      may_stage(OnSession(kMayStage)),
      stage(OnSession(kStage)),
      find(OnSession(kFind)),
      fork(Durable(kFork)),
      rewind(Durable(kRewind)),
      update(Durable(kUpdate)),
      take_in(Durable(kTakeIn)),
      replace(Durable(kReplace)),
      describe(OnSession(kDescribe)),
      mark(OnFamily(kMark)),
      sweep(OnFamily(kSweep)),
      shrink(OnFamily(kInUse, kShrink)),
      demote(OnFamily(kInUse, kDemote)),
      promote(OnFamily(kPromote)),
      lose(OnFamily(kLose)),
      discard(OnFamily(kDiscard)),
      unused(OnFamily(kUnused)),
      drop(redis::Script(absl::StrCat(kFamily, kDrop))),
      claim(OnTenant(kClaim, redis::Ack::kReplicas)),
      touch(OnTenant(kTouch)),
      unlink(OnTenant(kUnlink)),
      use(OnTenant(kUse)),
      drop_unused(OnTenant(kDropUnused)) {}

}  // namespace mneme::memory
