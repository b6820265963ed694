//! A `tokenizer.json` loaded into the tokenizers crate.

use std::sync::OnceLock;

use serde_json::json;

use crate::Failure;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same tokenizer, blind to special tokens written out in a text: the crate keeps that
    /// choice in the tokenizer. Made at the first use, since it doubles the memory.
    plain: OnceLock<tokenizers::Tokenizer>,
}

impl Tokenizer {
    pub fn from_json(json: &[u8]) -> Result<Self, Failure> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| Failure::invalid(format!("tokenizer.json is not usable: {error}")))?;
        // A file may carry the padding and truncation of somebody's training run.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| Failure::invalid(format!("tokenizer.json is not usable: {error}")))?;
        Ok(Tokenizer { inner, plain: OnceLock::new() })
    }

    pub fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        plain_text: bool,
    ) -> Result<Vec<u32>, Failure> {
        let tokenizer = if plain_text {
            self.plain.get_or_init(|| {
                let mut plain = self.inner.clone();
                plain.set_encode_special_tokens(true);
                plain
            })
        } else {
            &self.inner
        };
        let encoding = tokenizer
            .encode_fast(text, add_special_tokens)
            .map_err(|error| Failure::invalid(format!("text cannot be encoded: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, Failure> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|error| Failure::invalid(format!("ids cannot be decoded: {error}")))
    }

    fn size(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1)
    }

    /// JSON: `size` (largest id + 1), `special_ids` (ascending), `decoder` (as in the file, or null).
    pub fn describe(&self) -> Result<String, Failure> {
        let added = self.inner.get_added_vocabulary();
        let special_ids: Vec<u32> = (0..self.size())
            .filter(|id| {
                self.inner.id_to_token(*id).is_some_and(|token| added.is_special_token(&token))
            })
            .collect();
        let decoder = serde_json::to_value(self.inner.get_decoder())
            .map_err(|error| Failure::invalid(format!("decoder is not usable: {error}")))?;
        Ok(json!({"size": self.size(), "special_ids": special_ids, "decoder": decoder}).to_string())
    }

    /// For every id in order a little-endian u32 length and the token's text; 2^32 - 1 for a gap.
    pub fn tokens(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for id in 0..self.size() {
            match self.inner.id_to_token(id) {
                Some(token) => {
                    out.extend_from_slice(&(token.len() as u32).to_le_bytes());
                    out.extend_from_slice(token.as_bytes());
                }
                None => out.extend_from_slice(&u32::MAX.to_le_bytes()),
            }
        }
        out
    }
}
