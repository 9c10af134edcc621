//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use inducer_attention::MAX_RANK;
use inducer_attention::cpu::InstructionSet;

use super::shapes::Extent;

/// Most threads that are accepted.
const MAX_THREADS: usize = 1024;

/// Text of `--help`.
pub(crate) const HELP: &str = "\
Speed of the CPU engine, forward and backward, with the inducer on and off.

cargo bench --bench attention -- [OPTIONS] [FILTER]...

  --quick          a look: 8 problems, some ten seconds
  --full           everything: 162 problems, about half an hour (default: 24 problems, under two minutes)
  --filter WORDS   only lines whose label holds every word, as in --filter 'bwd bf16 causal d128 n2048';
                   a bare FILTER does the same
  --threads LIST   numbers of threads, as in 1,2 (default: one per CPU)
  --set NAME       instruction set: avx512bf16, avx512, avx2 or portable (default: the best that the CPU has)
  --rank R         rank of the inducer's two adapters, 1 to 64 (default: 8)
  --seconds S      time for each line (default: 0.3 with --quick, 3 with --full, otherwise 1.2)
  --json FILE      write the results to FILE as well
  --help           this text
";

/// What the user asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// Which problems.
    pub(crate) extent: Extent,
    /// Words that a line's label must hold.
    pub(crate) filter: Vec<String>,
    /// Numbers of threads; one per CPU if empty.
    pub(crate) threads: Vec<usize>,
    /// Instruction set; the best if none.
    pub(crate) set: Option<InstructionSet>,
    /// Rank of the adapters.
    pub(crate) rank: usize,
    /// Time for each comparison.
    pub(crate) budget: Duration,
    /// Where results go besides the terminal.
    pub(crate) json: Option<PathBuf>,
    /// Print the help and do nothing.
    pub(crate) help: bool,
}

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// A sentence that names the argument and what was expected.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let mut extent = None;
        let mut seconds = None;
        let mut options = Self {
            extent: Extent::default(),
            filter: Vec::new(),
            threads: Vec::new(),
            set: None,
            rank: 8,
            budget: Duration::ZERO,
            json: None,
            help: false,
        };
        while let Some(argument) = arguments.next() {
            let (name, attached) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let takes_value =
                matches!(name, "--filter" | "--threads" | "--set" | "--rank" | "--seconds" | "--json");
            if attached.is_some() && !takes_value && name.starts_with('-') {
                return Err(match name {
                    "--quick" | "--full" | "--help" | "--bench" => format!("{name} takes no value"),
                    _ => unknown(name),
                });
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
                "--help" | "-h" => options.help = true,
                "--quick" | "--full" => {
                    let wanted = if name == "--quick" { Extent::Quick } else { Extent::Full };
                    if extent.replace(wanted).is_some_and(|other| other != wanted) {
                        return Err("--quick and --full exclude each other".into());
                    }
                }
                "--filter" => options.filter.extend(words(&value)),
                "--threads" => options.threads = threads(&value)?,
                "--set" => options.set = Some(instruction_set(&value)?),
                "--rank" => {
                    options.rank =
                        value.parse().ok().filter(|r| (1..=MAX_RANK).contains(r)).ok_or_else(|| {
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
                "--json" => options.json = Some(value.into()),
                _ if name.starts_with('-') => return Err(unknown(name)),
                _ => options.filter.extend(words(&argument)),
            }
        }
        options.extent = extent.unwrap_or_default();
        options.budget = Duration::from_secs_f64(seconds.unwrap_or(options.extent.seconds()));
        Ok(options)
    }

    /// Whether a line is wanted.
    pub(crate) fn selects(&self, label: &str) -> bool {
        has_words(label, &self.filter)
    }
}

/// Whether a label has every word: whole ones, so that n512 does not select n5120, nor d64 anything but head_dim 64.
pub(crate) fn has_words(label: &str, wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| label.split(' ').any(|word| word == wanted))
}

fn unknown(name: &str) -> String {
    format!("{name} is not an option")
}

fn words(value: &str) -> impl Iterator<Item = String> + '_ {
    value.split_whitespace().map(str::to_lowercase)
}

fn threads(value: &str) -> Result<Vec<usize>, String> {
    let number = |part: &str| part.trim().parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    value.split(',').map(number).collect::<Option<_>>().ok_or_else(|| {
        format!("--threads {value}: expected whole numbers from 1 to {MAX_THREADS}, separated by commas")
    })
}

/// The name of an instruction set on the command line and in results.
pub(crate) fn set_name(set: InstructionSet) -> &'static str {
    match set {
        InstructionSet::Avx512Bf16 => "avx512bf16",
        InstructionSet::Avx512 => "avx512",
        InstructionSet::Avx2 => "avx2",
        InstructionSet::Portable => "portable",
        _ => "unnamed",
    }
}

fn instruction_set(value: &str) -> Result<InstructionSet, String> {
    let names = |sets: &[InstructionSet]| sets.iter().map(|s| set_name(*s)).collect::<Vec<_>>().join(", ");
    let set = InstructionSet::ALL.into_iter().find(|s| set_name(*s).eq_ignore_ascii_case(value));
    let set = set.ok_or_else(|| format!("--set {value}: expected one of {}", names(&InstructionSet::ALL)))?;
    if set.is_available() {
        return Ok(set);
    }
    Err(format!("--set {value}: this CPU does not have it, only {}", names(&InstructionSet::available())))
}
