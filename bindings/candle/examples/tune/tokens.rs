//! Text as token numbers, and the windows of it that a model trains on and is measured on.

use crate::corpus::Text;
use crate::rng::Rng;
use anyhow::{Result, anyhow, bail};
use candle_core::{Device, Tensor};
use std::path::Path;

/// How text becomes tokens.
pub(crate) enum Tokenizer {
    /// One token a byte.
    Bytes,
    /// A `tokenizer.json` in Hugging Face format.
    HuggingFace(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let tokenizer = tokenizers::Tokenizer::from_file(path)
            .map_err(|error| anyhow!("cannot read the tokenizer {}: {error}", path.display()))?;
        Ok(Self::HuggingFace(Box::new(tokenizer)))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::HuggingFace(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, false);
                Ok(encoding.map_err(|error| anyhow!("cannot tokenise the text: {error}"))?.get_ids().to_vec())
            }
        }
    }
}

/// Tokens u32 `[B, N]` and, for each, the token that follows it.
pub(crate) type Batch = (Tensor, Tensor);

/// A domain's tokens.
pub(crate) struct Domain {
    train: Vec<u32>,
    held_out: Vec<u32>,
}

impl Domain {
    /// Tokenises the text. `name` is for the message of an error: a part shorter than a window, or a token that the model
    /// does not know.
    pub(crate) fn new(
        name: &str,
        text: &Text,
        tokenizer: &Tokenizer,
        length: usize,
        vocabulary: usize,
    ) -> Result<Self> {
        let (train, held_out) = (tokenizer.encode(&text.train)?, tokenizer.encode(&text.held_out)?);
        for (part, tokens) in [("training", &train), ("held-out", &held_out)] {
            if tokens.len() <= length {
                bail!(
                    "{name}: the {part} part has {} tokens; windows of {length} tokens need at least {}",
                    tokens.len(),
                    length + 1
                );
            }
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
                bail!(
                    "{name}: the tokenizer gives token {token}, but the model's vocabulary has {vocabulary}"
                );
            }
        }
        Ok(Self { train, held_out })
    }

    /// Numbers of tokens: training, held out.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.train.len(), self.held_out.len())
    }

    /// The text's beginning.
    pub(crate) fn beginning(&self) -> &[u32] {
        &self.train
    }

    /// Windows of the training part at random places.
    pub(crate) fn batch(&self, rng: &mut Rng, size: usize, length: usize) -> Result<Batch> {
        let starts: Vec<_> = (0..size).map(|_| rng.below(self.train.len() - length)).collect();
        windows(&self.train, &starts, length)
    }

    /// `count` windows spread evenly over the held-out part (fewer where it is short), in batches of `size`.
    pub(crate) fn held_out(&self, count: usize, size: usize, length: usize) -> Result<Vec<Batch>> {
        let room = self.held_out.len() - length;
        let count = count.min(room.div_ceil(length));
        let starts: Vec<_> = (0..count).map(|window| window * room / count).collect();
        starts.chunks(size).map(|starts| windows(&self.held_out, starts, length)).collect()
    }
}

fn windows(tokens: &[u32], starts: &[usize], length: usize) -> Result<Batch> {
    let gather = |shift: usize| -> Result<Tensor> {
        let values: Vec<u32> = starts
            .iter()
            .flat_map(|&start| &tokens[start + shift..start + shift + length])
            .copied()
            .collect();
        Ok(Tensor::from_vec(values, (starts.len(), length), &Device::Cpu)?)
    };
    Ok((gather(0)?, gather(1)?))
}

#[cfg(test)]
mod tests {
    use super::{Domain, Tokenizer};
    use crate::corpus::Text;
    use crate::rng::Rng;

    fn domain(train: &str, held_out: &str) -> anyhow::Result<Domain> {
        let text = Text { train: train.into(), held_out: held_out.into() };
        Domain::new("text", &text, &Tokenizer::Bytes, 4, 256)
    }

    #[test]
    fn targets_are_the_tokens_that_follow() {
        let domain = domain("abcdefgh", "01234567").unwrap();
        let (tokens, targets) = domain.batch(&mut Rng::new(1), 3, 4).unwrap();
        for (tokens, targets) in
            tokens.to_vec2::<u32>().unwrap().iter().zip(targets.to_vec2::<u32>().unwrap())
        {
            assert!(tokens.iter().zip(targets).all(|(token, target)| token + 1 == target));
        }
    }

    #[test]
    fn held_out_windows_stay_inside_and_do_not_repeat() {
        let domain = domain("abcdefgh", "0123456789").unwrap();
        let batches = domain.held_out(99, 2, 4).unwrap();
        let starts: Vec<u32> = batches
            .iter()
            .flat_map(|(tokens, _)| tokens.to_vec2::<u32>().unwrap())
            .map(|row| row[0])
            .collect();
        assert_eq!(starts, [48, 51]);
    }

    #[test]
    fn too_little_text_is_an_error_that_says_how_much_is_needed() {
        let message = domain("abcd", "0123456789").err().unwrap().to_string();
        assert_eq!(message, "text: the training part has 4 tokens; windows of 4 tokens need at least 5");
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_an_error() {
        let text = Text { train: "abcdefz".into(), held_out: "abcdef".into() };
        let message = Domain::new("text", &text, &Tokenizer::Bytes, 4, 110).err().unwrap().to_string();
        assert_eq!(message, "text: the tokenizer gives token 122, but the model's vocabulary has 110");
    }
}
