//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use inducer_attention::MAX_RANK;

use super::grid::Extent;

/// Text of `--help`.
pub(crate) const HELP: &str = "\
Speed of the CUDA kernels, with the inducer on and off in turn, next to what the card can do at most.

cargo bench --features cuda --bench gpu -- [OPTIONS] [FILTER]...

  --quick          a look: 4 problems, some ten seconds
  --full           everything (default: what is needed to judge a change, in about two minutes)
  --filter WORDS   only lines whose label holds every word, as in --filter 'fwd bf16 causal d128 n4096';
                   a bare FILTER does the same
  --rank R         rank of the inducer's two adapters, 1 to 64 (default: 8)
  --seconds S      most time for each line; it ends before, once the figures are steady
                   (default: 0.5 with --quick, 5 with --full, otherwise 2)
  --json FILE      write the results to FILE as well, after every line
  --gpu N          the card's number (default: 0)
  --hopper         on a Hopper card, the kernels that are for it alone
  --static         the table of registers, spills and shared memory alone, which needs no GPU
  --once LABEL     launch the one call that LABEL names, a single time, and measure nothing: for ncu. With the inducer;
                   the word 'off' in LABEL leaves it out
  --smoke          launch small problems for every kernel once, and measure nothing: for compute-sanitizer
  --serve          read labels from standard input, answer each with a line of JSON: for peers.py
  --info           what the card is, and nothing else
  --require-gpu    fail where there is no GPU, instead of leaving the measurement out
  --help           this text

Without a GPU, or without feature cuda, the static table is printed.
";

/// What the program is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Task {
    /// Measure, or print the static table where there is no GPU.
    Measure,
    /// The static table.
    Static,
    /// One launch of the labelled call.
    Once(Vec<String>),
    /// Every kernel once.
    Smoke,
    /// Measure what is asked for on standard input.
    Serve,
    /// Describe the card.
    Info,
    /// The help.
    Help,
}

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// What to do.
    pub(crate) task: Task,
    /// Which problems.
    pub(crate) extent: Extent,
    /// Words that a line's label must hold.
    pub(crate) filter: Vec<String>,
    /// Rank of the adapters.
    pub(crate) rank: usize,
    /// Most time for each line.
    pub(crate) budget: Duration,
    /// Where results go besides the terminal.
    pub(crate) json: Option<PathBuf>,
    /// The card's number.
    pub(crate) gpu: usize,
    /// Kernels for Hopper, where the card is one.
    pub(crate) hopper: bool,
    /// No GPU is an error.
    pub(crate) require_gpu: bool,
}

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// A sentence that names the argument and what was expected.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let (mut extent, mut seconds) = (None, None);
        let mut options = Self {
            task: Task::Measure,
            extent: Extent::default(),
            filter: Vec::new(),
            rank: 8,
            budget: Duration::ZERO,
            json: None,
            gpu: 0,
            hopper: false,
            require_gpu: false,
        };
        while let Some(argument) = arguments.next() {
            let (name, attached) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let takes_value =
                matches!(name, "--filter" | "--rank" | "--seconds" | "--json" | "--gpu" | "--once");
            if attached.is_some() && !takes_value && name.starts_with('-') {
                return Err(format!("{name} takes no value, or is not an option"));
            }
            let value = if takes_value {
                let value = attached.or_else(|| arguments.next());
                value.filter(|v| !v.is_empty()).ok_or_else(|| format!("{name} needs a value"))?
            } else {
                String::new()
            };
            match name {
                // Cargo's own, passed to every bench.
                "--bench" => {}
                "--help" | "-h" => options.set_task(Task::Help)?,
                "--static" => options.set_task(Task::Static)?,
                "--smoke" => options.set_task(Task::Smoke)?,
                "--serve" => options.set_task(Task::Serve)?,
                "--info" => options.set_task(Task::Info)?,
                "--once" => options.set_task(Task::Once(words(&value).collect()))?,
                "--hopper" => options.hopper = true,
                "--require-gpu" => options.require_gpu = true,
                "--quick" | "--full" => {
                    let wanted = if name == "--quick" { Extent::Quick } else { Extent::Full };
                    if extent.replace(wanted).is_some_and(|other| other != wanted) {
                        return Err("--quick and --full exclude each other".into());
                    }
                }
                "--filter" => options.filter.extend(words(&value)),
                "--rank" => {
                    let rank = value.parse().ok().filter(|r| (1..=MAX_RANK).contains(r));
                    options.rank = rank.ok_or_else(|| {
                        format!("--rank {value}: expected a whole number from 1 to {MAX_RANK}")
                    })?;
                }
                "--seconds" => {
                    let valid = value.parse().ok().filter(|s| (0.001..=3600.0).contains(s));
                    seconds =
                        Some(valid.ok_or_else(|| {
                            format!("--seconds {value}: expected a number from 0.001 to 3600")
                        })?);
                }
                "--gpu" => {
                    options.gpu =
                        value.parse().map_err(|_| format!("--gpu {value}: expected a card's number"))?;
                }
                "--json" => options.json = Some(value.into()),
                _ if name.starts_with('-') => return Err(format!("{name} is not an option")),
                _ => options.filter.extend(words(&argument)),
            }
        }
        options.extent = extent.unwrap_or_default();
        options.budget = Duration::from_secs_f64(seconds.unwrap_or(options.extent.seconds()));
        Ok(options)
    }

    fn set_task(&mut self, task: Task) -> Result<(), String> {
        if self.task != Task::Measure && self.task != task {
            return Err("of --static, --once, --smoke, --serve, --info and --help, only one at a time".into());
        }
        self.task = task;
        Ok(())
    }
}

/// Whether a label holds every word.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "needs a GPU"))]
pub(crate) fn selects(words: &[String], label: &str) -> bool {
    // Whole words, so that n512 does not select n5120, nor d64 anything but head_dim 64.
    words.iter().all(|wanted| label.split(' ').any(|word| word == wanted))
}

/// The words of a label or a filter.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(str::to_lowercase)
}
