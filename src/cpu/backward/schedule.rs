//! Who works on what, and when: a pair's queries in parts, its keys in chunks, and steps in which no two tasks meet.
//!
//! In a step, part i of the queries works on chunk (i + step) of the keys, counted round: a Latin square. Where dK and dV are
//! gathered in scratch memory, many keys are taken a *band* at a time, so that this memory is as large as a band and not as the
//! sequence; but not in a sliding window, where few queries see a band, and most threads would have nothing to do. Everything
//! follows from a sequence's lengths and mask, and so does the order of all sums.

/// Rows that one part of the queries holds at least, and the most parts of a pair.
const PART_ROWS: usize = 1024;
const MAX_PARTS: usize = 16;

/// More keys than these come in bands, of so many chunks and at most so many keys.
const BANDED_KEYS: usize = 4096;
const BAND_CHUNKS: usize = 8;
const BAND_KEYS: usize = 1536;

/// What a task works on beside its queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The prefix and all keys.
    All,
    Prefix,
    /// Keys from the first to one before the second.
    Keys(usize, usize),
}

/// How one pair of a sequence and a key/value head is worked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    parts: usize,
    keys: usize,
    /// Keys of a chunk.
    chunk: usize,
    /// Chunks, of which the prefix is the first if there is one.
    chunks: usize,
    prefix: usize,
    /// Chunks of a band.
    band: usize,
}

/// What a [`Schedule`] follows from.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Queries of the sequence, and query heads that share the keys.
    pub(super) rows: usize,
    pub(super) group: usize,
    pub(super) keys: usize,
    pub(super) has_prefix: bool,
    /// Keys of a tile.
    pub(super) tile: usize,
    /// Whether dK and dV are gathered where they belong.
    pub(super) in_place: bool,
    /// Whether rows see keys in a window only.
    pub(super) windowed: bool,
}

impl Schedule {
    pub(super) fn new(extent: Extent) -> Self {
        let Extent { rows, group, keys, has_prefix, tile, in_place, windowed } = extent;
        let prefix = usize::from(has_prefix);
        let parts = (rows * group).div_ceil(PART_ROWS).clamp(1, MAX_PARTS);
        if !in_place && !windowed && keys > BANDED_KEYS {
            let chunk = (BAND_KEYS / BAND_CHUNKS / tile * tile).max(tile);
            let chunks = keys.div_ceil(chunk) + prefix;
            // Squares without empty rows.
            let parts = if parts > BAND_CHUNKS / 2 { parts.next_multiple_of(BAND_CHUNKS) } else { parts };
            return Self { parts, keys, chunk, chunks, prefix, band: BAND_CHUNKS };
        }
        if parts == 1 {
            return Self { parts, keys, chunk: keys, chunks: 1, prefix, band: 1 };
        }
        let chunk = keys.div_ceil(parts).next_multiple_of(tile).max(tile);
        let chunks = keys.div_ceil(chunk) + prefix;
        Self { parts, keys, chunk, chunks, prefix, band: parts.max(chunks) }
    }

    /// Parts of the queries.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    /// Tasks of a step.
    pub(super) fn tasks(&self) -> usize {
        self.parts.min(self.band)
    }

    pub(super) fn bands(&self) -> usize {
        self.chunks.div_ceil(self.band)
    }

    /// Steps of a band: one square for as many parts as there are chunks in it.
    pub(super) fn steps(&self) -> usize {
        self.parts.div_ceil(self.band) * self.band
    }

    /// The sequence's keys in a band, from the first to one before the second.
    pub(super) fn band_keys(&self, band: usize) -> (usize, usize) {
        if self.is_whole() {
            return (if band == 0 { 0 } else { self.keys }, self.keys);
        }
        let until = |chunk: usize| (chunk.saturating_sub(self.prefix) * self.chunk).min(self.keys);
        (until(band * self.band), until((band + 1) * self.band))
    }

    /// Most keys of a band.
    pub(super) fn most_keys(&self) -> usize {
        (0..self.bands()).map(|band| self.band_keys(band)).map(|(first, end)| end - first).max().unwrap_or(0)
    }

    /// What a part works on in a step of a band.
    pub(super) fn turn(&self, band: usize, step: usize, part: usize) -> Option<Turn> {
        if step >= self.steps() || part >= self.parts || part / self.band != step / self.band {
            return None;
        }
        let chunk = band * self.band + (part + step) % self.band;
        if chunk >= self.chunks {
            return None;
        }
        if self.is_whole() {
            return Some(Turn::All);
        }
        if chunk < self.prefix {
            return Some(Turn::Prefix);
        }
        let first = (chunk - self.prefix) * self.chunk;
        Some(Turn::Keys(first, (first + self.chunk).min(self.keys)))
    }

    /// Whether there is one task, with all there is.
    fn is_whole(&self) -> bool {
        self.band == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schedules of all kinds.
    fn all() -> impl Iterator<Item = Schedule> {
        let lengths = [0, 1, 95, 96, 97, 1023, 1025, 2048, 3000, 4096, 4097, 5000, 9000, 16384, 40000];
        lengths.into_iter().flat_map(move |rows| {
            lengths.into_iter().flat_map(move |keys| {
                [(1, 96), (3, 128)].into_iter().flat_map(move |(group, tile)| {
                    [(false, false), (false, true), (true, false), (true, true)].into_iter().map(
                        move |(has_prefix, in_place)| {
                            Schedule::new(Extent {
                                rows,
                                group,
                                keys,
                                has_prefix,
                                tile,
                                in_place,
                                windowed: false,
                            })
                        },
                    )
                })
            })
        })
    }

    #[test]
    fn every_part_meets_every_key_and_the_prefix_once() {
        for s in all() {
            for part in 0..s.parts {
                let (mut runs, mut prefix) = (Vec::new(), 0);
                for band in 0..s.bands() {
                    for turn in (0..s.steps()).filter_map(|step| s.turn(band, step, part)) {
                        let (first, end) = match turn {
                            Turn::All => (0, s.keys),
                            Turn::Keys(first, end) => (first, end),
                            Turn::Prefix => {
                                prefix += 1;
                                continue;
                            }
                        };
                        let held = s.band_keys(band);
                        assert!(
                            held.0 <= first && first <= end && end <= held.1,
                            "{s:?}, band {band}: {first}..{end}"
                        );
                        prefix += usize::from(turn == Turn::All) * s.prefix;
                        runs.push((first, end));
                    }
                }
                runs.sort_unstable();
                let end = runs.iter().fold(0, |end, run| {
                    assert_eq!(run.0, end, "{s:?}: {runs:?}");
                    run.1
                });
                assert_eq!((end, prefix), (s.keys, s.prefix), "{s:?}");
            }
            // Another sequence may have more bands.
            let (first, end) = s.band_keys(s.bands());
            assert_eq!(first, end, "{s:?}");
        }
    }

    #[test]
    fn no_two_tasks_of_a_step_meet() {
        for s in all() {
            for (band, step) in (0..s.bands()).flat_map(|band| (0..s.steps()).map(move |step| (band, step))) {
                let turns: Vec<_> = (0..s.parts).filter_map(|part| s.turn(band, step, part)).collect();
                assert!(turns.len() <= s.tasks());
                for (i, turn) in turns.iter().enumerate() {
                    assert!(!turns[..i].contains(turn), "{s:?}, band {band}, step {step}: {turns:?}");
                }
            }
        }
    }

    #[test]
    fn bands_bound_what_long_sequences_need() {
        for s in all().filter(|s| s.keys > BANDED_KEYS) {
            let banded = s.band == BAND_CHUNKS && s.chunk * BAND_CHUNKS <= BAND_KEYS;
            assert!(banded || s.bands() <= 1, "{s:?}");
            assert!(!banded || s.most_keys() <= BAND_KEYS, "{s:?}");
        }
    }
}
