"""The official `openai` Python package against a real `mneme up`."""

import unittest

import openai

from mneme_up import MODEL, MnemeUp

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.up = MnemeUp("--compute", "float32")
        cls.client = openai.OpenAI(base_url=cls.up.base_url, api_key="none", max_retries=0,
                                   timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.up.stop()

    def chat(self, **arguments):
        arguments.setdefault("messages", QUESTION)
        arguments.setdefault("model", MODEL)
        arguments.setdefault("max_tokens", 16)
        arguments.setdefault("temperature", 0)
        return self.client.chat.completions.create(**arguments)

    def test_chat_answers_what_the_reference_answers(self):
        reply = self.chat()
        self.assertEqual(reply.object, "chat.completion")
        self.assertEqual(reply.choices[0].message.role, "assistant")
        self.assertEqual(reply.choices[0].message.content, "The capital of France is Paris.")
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertEqual(reply.usage.prompt_tokens, 37)
        self.assertEqual(reply.usage.total_tokens,
                         reply.usage.prompt_tokens + reply.usage.completion_tokens)

    def test_stream_equals_whole_answer_and_ends_with_usage(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks
                          if c.choices and c.choices[0].finish_reason], ["stop"])
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_length_stop_seed_and_n(self):
        reply = self.chat(max_tokens=3)
        self.assertEqual(reply.choices[0].finish_reason, "length")
        self.assertEqual(reply.usage.completion_tokens, 3)
        reply = self.chat(stop=["France"])
        self.assertEqual(reply.choices[0].message.content, "The capital of ")
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        many = self.chat(n=3, temperature=1.2, seed=7, max_tokens=12)
        self.assertEqual([c.index for c in many.choices], [0, 1, 2])
        again = self.chat(n=3, temperature=1.2, seed=7, max_tokens=12)
        self.assertEqual([c.message.content for c in many.choices],
                         [c.message.content for c in again.choices])
        self.assertGreater(len({c.message.content for c in many.choices}), 1)

    def test_chat_logprobs(self):
        reply = self.chat(logprobs=True, top_logprobs=2)
        content = reply.choices[0].logprobs.content
        self.assertEqual(len(content), reply.usage.completion_tokens - 1)  # the end token has no text
        self.assertEqual("".join(t.token for t in content), reply.choices[0].message.content)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 2)
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=5)

    def test_completion_with_echo_and_logprobs(self):
        prompt = "The capital of France is"
        reply = self.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4,
                                               temperature=0, echo=True, logprobs=1)
        choice = reply.choices[0]
        self.assertTrue(choice.text.startswith(prompt))
        self.assertEqual("".join(choice.logprobs.tokens), choice.text)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(p <= 0 for p in choice.logprobs.token_logprobs[1:]))
        self.assertEqual(len(choice.logprobs.text_offset), len(choice.logprobs.tokens))
        stream = self.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4,
                                                temperature=0, stream=True)
        self.assertEqual(prompt + "".join(c.choices[0].text for c in stream if c.choices),
                         choice.text)

    def test_session_remembers(self):
        extra = {"session_id": "openai-1"}
        self.chat(messages=[{"role": "user", "content": "My name is Ada."}], extra_body=extra)
        reply = self.chat(messages=[{"role": "user", "content": "What is my name?"}],
                          extra_body=extra, max_tokens=24)
        whole = self.chat(messages=[{"role": "user", "content": "What is my name?"}], max_tokens=24)
        self.assertGreater(reply.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(reply.model_extra["mneme"]["committed_version"], 2)
        self.assertTrue(reply.model_extra["mneme"]["persisted"])

    def respond(self, input, **arguments):
        return self.client.responses.create(model=MODEL, input=input, temperature=0,
                                            max_output_tokens=arguments.pop("max_output_tokens", 24),
                                            **arguments)

    def test_response_is_stored_and_continued(self):
        first = self.respond("What is the capital of France?")
        self.assertEqual(first.output_text, "The capital of France is Paris.")
        self.assertEqual(first.status, "completed")
        self.assertEqual(first.usage.total_tokens,
                         first.usage.input_tokens + first.usage.output_tokens)
        second = self.respond("And of Italy?", previous_response_id=first.id)
        self.assertGreater(second.usage.input_tokens, first.usage.total_tokens)
        found = self.client.responses.retrieve(first.id)
        self.assertEqual(found.output_text, first.output_text)
        self.assertEqual(found.usage, first.usage)
        items = self.client.responses.input_items.list(first.id)
        self.assertEqual([i.content[0].text for i in items], ["What is the capital of France?"])
        # Again from the first: the same question gives the same answer, on another branch.
        branch = self.respond("And of Italy?", previous_response_id=first.id)
        self.assertEqual(branch.output_text, second.output_text)
        self.client.responses.delete(second.id)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(second.id)
        with self.assertRaises(openai.NotFoundError):
            self.respond("x", previous_response_id="resp_none")

    def test_response_stream_has_the_events_that_the_client_knows(self):
        whole = self.respond("What is the capital of France?", store=False)
        with self.client.responses.stream(model=MODEL, input="What is the capital of France?",
                                          temperature=0, max_output_tokens=24) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual(events[0].type, "response.created")
        self.assertEqual(events[-1].type, "response.completed")
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        self.assertEqual(text, whole.output_text)
        self.assertEqual(final.output_text, whole.output_text)
        self.assertEqual([e.sequence_number for e in events], sorted(
            e.sequence_number for e in events))
        cut = self.respond("Write a long story.", max_output_tokens=4)
        self.assertEqual(cut.status, "incomplete")
        self.assertEqual(cut.incomplete_details.reason, "max_output_tokens")

    def test_conversation_keeps_its_items(self):
        conversation = self.client.conversations.create(
            metadata={"topic": "demo"},
            items=[{"type": "message", "role": "user", "content": "My name is Ada."}])
        self.assertEqual(conversation.metadata, {"topic": "demo"})
        reply = self.respond("What is my name?", conversation=conversation.id)
        self.assertEqual(reply.conversation.id, conversation.id)
        items = list(self.client.conversations.items.list(conversation.id, order="asc"))
        self.assertEqual([i.role for i in items], ["user", "user", "assistant"])
        self.assertEqual(items[2].content[0].text, reply.output_text)
        updated = self.client.conversations.update(conversation.id, metadata={"title": "Ada"})
        self.assertEqual(updated.metadata, {"title": "Ada"})
        self.assertTrue(self.client.conversations.delete(conversation.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.client.conversations.retrieve(conversation.id)

    def test_repeated_key_makes_one_turn(self):
        extra = {"session_id": "openai-2"}
        keys = {"Idempotency-Key": "openai-key-1"}
        first = self.chat(extra_body=extra, extra_headers=keys)
        again = self.chat(extra_body=extra, extra_headers=keys)
        self.assertEqual(again.choices[0].message.content, first.choices[0].message.content)
        self.assertEqual(again.model_extra["mneme"]["committed_version"], 1)

    def test_models(self):
        self.assertIn(MODEL, [m.id for m in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve(MODEL).object, "model")

    def test_errors_are_the_clients_own_exceptions(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")
        for bad in ({"messages": []}, {"temperature": -1}, {"n": 0}, {"top_p": 7},
                    {"messages": [{"role": "wizard", "content": "x"}]}, {"max_tokens": "many"},
                    {"messages": [{"role": "user", "content": "a " * 20000}]}):
            with self.assertRaises(openai.BadRequestError, msg=str(bad)[:80]) as caught:
                self.chat(**bad)
            self.assertTrue(caught.exception.message)
        with self.assertRaises(openai.APIStatusError) as caught:
            self.client.embeddings.create(model=MODEL, input="x")
        self.assertIn(caught.exception.status_code, (404, 501))
        self.assertEqual(self.chat().choices[0].finish_reason, "stop")  # the service goes on

    def test_abandoned_stream_leaves_no_page(self):
        stream = self.chat(stream=True, max_tokens=2000,
                           messages=[{"role": "user", "content": "Write a long story."}])
        next(iter(stream))
        stream.close()
        import time

        for _ in range(100):
            values = self.up.metrics("executor")
            used = [v for k, v in values.items() if "pages_used" in k]
            if used and used[0] == 0:
                return
            time.sleep(0.05)
        self.fail(f"pages are still used: {used}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
