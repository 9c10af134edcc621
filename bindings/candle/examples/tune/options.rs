//! The command line.

use crate::adapter::Method;
use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const HELP: &str = "\
Trains a small byte-level transformer on Rust code, freezes it, and adapts it to another text by prefix-tuning,
inducer-tuning, inducer-tuning with LoRA, and LoRA, with about the same number of trained parameters.

Usage: cargo run --release -p inducer-attention-candle --example tune -- [OPTIONS]

Options:
  --text FILE        adapt to this text (default: the documentation of the packages that cargo has fetched)
  --model DIR        adapt a GPT-2 checkpoint in Hugging Face format, or the base/ folder of an earlier run, instead of
                     training a model first
  --out DIR          where adapters, base model, table and plot go (default: out/tune)
  --method METHOD    only prefix, inducer, inducer-lora or lora (default: all of them)
  --rank R           rank of the inducers; the other methods get as many parameters (default: 8)
  --quick            a tenth of the steps
  --seconds S        train for at most S seconds in all (default: as long as the steps take)
  --learning-rate X  of the adapters, instead of each method's own
  --seed N           of initial values and batches (default: 1)
  --device DEVICE    cpu or cuda (default: cpu); where cuda cannot be used, a line says why and the CPU is taken
  -h, --help         this text

Ctrl-C ends the training and keeps what is there.";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) text: Option<PathBuf>,
    pub(crate) model: Option<PathBuf>,
    pub(crate) out: PathBuf,
    pub(crate) methods: Vec<Method>,
    pub(crate) rank: usize,
    pub(crate) quick: bool,
    pub(crate) limit: Option<Duration>,
    pub(crate) learning_rate: Option<f64>,
    pub(crate) seed: u64,
    pub(crate) cuda: bool,
}

/// Options, or `None` where help is asked for. Files and folders that are named must exist.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Options>> {
    let mut options = Options {
        text: None,
        model: None,
        out: PathBuf::from("out/tune"),
        methods: Method::ALL.to_vec(),
        rank: 8,
        quick: false,
        limit: None,
        learning_rate: None,
        seed: 1,
        cuda: false,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("text") => {
                let path = PathBuf::from(parser.value()?);
                ensure!(path.is_file(), "--text {}: there is no such file", path.display());
                options.text = Some(path);
            }
            Long("model") => {
                let path = PathBuf::from(parser.value()?);
                ensure!(path.is_dir(), "--model {}: there is no such folder", path.display());
                options.model = Some(path);
            }
            Long("out") => options.out = PathBuf::from(parser.value()?),
            Long("method") => {
                let value = parser.value()?;
                let Some(method) = Method::ALL.into_iter().find(|method| value == method.name()) else {
                    bail!("--method {}: expected prefix, inducer, inducer-lora or lora", value.display());
                };
                options.methods = vec![method];
            }
            Long("rank") => {
                options.rank = parser.value()?.parse().context("--rank")?;
                ensure!((1..=64).contains(&options.rank), "--rank {}: expected 1 to 64", options.rank);
            }
            Long("quick") => options.quick = true,
            Long("seconds") => {
                let seconds: f64 = parser.value()?.parse().context("--seconds")?;
                ensure!(seconds > 0.0 && seconds < 1e9, "--seconds {seconds}: expected a positive number");
                options.limit = Some(Duration::from_secs_f64(seconds));
            }
            Long("learning-rate") => {
                let rate: f64 = parser.value()?.parse().context("--learning-rate")?;
                ensure!(
                    rate > 0.0 && rate < 10.0,
                    "--learning-rate {rate}: expected a number between 0 and 10"
                );
                options.learning_rate = Some(rate);
            }
            Long("seed") => options.seed = parser.value()?.parse().context("--seed")?,
            Long("device") => match parser.value()?.to_str() {
                Some("cpu") => options.cuda = false,
                Some("cuda") => options.cuda = true,
                value => bail!("--device {}: expected cpu or cuda", value.unwrap_or("?")),
            },
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::{Method, parse};
    use std::time::Duration;

    fn error(arguments: &[&str]) -> String {
        format!("{:#}", parse(arguments.iter().map(Into::into)).unwrap_err())
    }

    #[test]
    fn options_are_read() {
        let arguments =
            ["--method", "lora", "--rank", "4", "--quick", "--seconds=2.5", "--seed", "9", "--out", "x"];
        let options = parse(arguments.iter().map(Into::into)).unwrap().unwrap();
        assert_eq!((options.rank, options.quick, options.seed), (4, true, 9));
        assert_eq!(options.methods, [Method::Lora]);
        assert_eq!(options.limit, Some(Duration::from_millis(2500)));
        assert!(parse(["--help".into()]).unwrap().is_none());
    }

    #[test]
    fn wrong_options_are_errors_that_name_them() {
        assert_eq!(error(&["--text", "/no/such"]), "--text /no/such: there is no such file");
        assert_eq!(error(&["--model", "/no/such"]), "--model /no/such: there is no such folder");
        assert_eq!(error(&["--method", "x"]), "--method x: expected prefix, inducer, inducer-lora or lora");
        assert_eq!(error(&["--rank", "65"]), "--rank 65: expected 1 to 64");
        assert_eq!(error(&["--seconds", "NaN"]), "--seconds NaN: expected a positive number");
        assert_eq!(error(&["--device", "tpu"]), "--device tpu: expected cpu or cuda");
        assert!(error(&["--rank", "many"]).starts_with("--rank: "));
        assert!(error(&["--colour"]).contains("--colour"));
        assert!(error(&["stray"]).contains("stray"));
    }
}
