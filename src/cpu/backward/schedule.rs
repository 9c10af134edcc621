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
    fn all() -> Vec<(Extent, Schedule)> {
        let lengths = [0, 1, 95, 96, 97, 1023, 1025, 2048, 3000, 4096, 4097, 5000, 9000, 16384, 40000];
        let mut all = Vec::new();
        for (rows, keys) in lengths.iter().flat_map(|&rows| lengths.map(|keys| (rows, keys))) {
            for (group, tile) in [(1, 96), (3, 128)] {
                for flags in 0..8 {
                    let [has_prefix, in_place, windowed] = [1, 2, 4].map(|flag| flags & flag != 0);
                    let extent = Extent { rows, group, keys, has_prefix, tile, in_place, windowed };
                    all.push((extent, Schedule::new(extent)));
                }
            }
        }
        all
    }

    /// Keys of a turn.
    fn keys_of(turn: Turn, s: &Schedule) -> Option<(usize, usize)> {
        match turn {
            Turn::All => Some((0, s.keys)),
            Turn::Keys(first, end) => Some((first, end)),
            Turn::Prefix => None,
        }
    }

    #[test]
    fn every_part_meets_every_key_and_the_prefix_once() {
        for (_, s) in all() {
            for part in 0..s.parts {
                let (mut runs, mut prefix) = (Vec::new(), 0);
                for band in 0..s.bands() {
                    for turn in (0..s.steps()).filter_map(|step| s.turn(band, step, part)) {
                        prefix += match turn {
                            Turn::All => s.prefix,
                            Turn::Prefix => 1,
                            Turn::Keys(..) => 0,
                        };
                        let Some((first, end)) = keys_of(turn, &s) else { continue };
                        let held = s.band_keys(band);
                        assert!(
                            held.0 <= first && first <= end && end <= held.1,
                            "{s:?}, band {band}: {first}..{end}"
                        );
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
        }
    }

    #[test]
    fn bands_lie_side_by_side() {
        for (_, s) in all() {
            // Another sequence may have more bands: they are empty here.
            let end = (0..s.bands() + 2).fold(0, |end, band| {
                let keys = s.band_keys(band);
                assert!(keys.0 == end && keys.0 <= keys.1, "{s:?}, band {band}");
                assert!(band < s.bands() || keys.0 == keys.1, "{s:?}, band {band}");
                keys.1
            });
            assert_eq!(end, s.keys, "{s:?}");
        }
    }

    #[test]
    fn no_two_tasks_of_a_step_meet() {
        for (_, s) in all() {
            for (band, step) in (0..s.bands()).flat_map(|band| (0..s.steps()).map(move |step| (band, step))) {
                let turns: Vec<_> = (0..s.parts).filter_map(|part| s.turn(band, step, part)).collect();
                assert!(turns.len() <= s.tasks());
                assert!(turns.len() < 2 || !turns.contains(&Turn::All), "{s:?}");
                assert!(turns.iter().filter(|&&turn| turn == Turn::Prefix).count() < 2, "{s:?}");
                let mut runs: Vec<_> = turns.iter().filter_map(|&turn| keys_of(turn, &s)).collect();
                runs.sort_unstable();
                let apart = runs.windows(2).all(|pair| pair[0].1 <= pair[1].0);
                assert!(apart, "{s:?}, band {band}, step {step}: {turns:?}");
            }
        }
    }

    #[test]
    fn bands_bound_what_long_sequences_need() {
        let mut banded = 0;
        for (extent, s) in all() {
            if !extent.in_place && !extent.windowed && extent.keys > BANDED_KEYS {
                banded += 1;
                assert!(s.most_keys() <= BAND_KEYS && s.bands() > 1, "{s:?}");
            } else {
                assert!(s.bands() <= 1 && s.most_keys() == s.keys, "{s:?}");
            }
        }
        assert!(banded > 100, "{banded}");
    }
}
