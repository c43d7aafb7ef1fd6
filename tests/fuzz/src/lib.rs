//! The loop that fuzzes: inputs from a corpus, changed at random, until something panics.
//!
//! Remote input must never reach a panic, and what a decoder takes it must take the same way twice. A
//! target says what it does with one input and returns what became of it, as a number; an input with an
//! outcome not seen before joins the pool that is changed further. That stands in for coverage, so that
//! stable Rust is enough and a run is as reproducible as a test.
//!
//! In order: every seed and every file of `corpus/TARGET/` as it is; then changed ones until
//! `FLATLAN_FUZZ_RUNS` inputs or `FLATLAN_FUZZ_SECONDS` are spent. A failure prints the input and stores it
//! in the folder for temporary files; moved into the corpus, it is a regression test.
//!
//! It does not shrink inputs, and it does not know what a target means.

use std::{
    collections::BTreeSet,
    env, fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// One target: its name and what it starts from.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    pool: Vec<Vec<u8>>,
    longest: usize,
}

impl Fuzz {
    /// A target with the files of `corpus/NAME/`.
    pub fn new(name: &'static str) -> Self {
        let mut fuzz = Self { name, pool: vec![Vec::new()], longest: 4096 };
        fuzz.add_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name));
        fuzz
    }

    /// Starts from these too.
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.pool.extend(seeds);
        self
    }

    /// Starts from the golden files of a crate too, those whose names begin so. `.hex` files are read as such.
    pub fn golden(mut self, folder: &str, beginning: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src").join(folder);
        let before = self.pool.len();
        for path in files(&folder) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)) {
                self.add_file(&path);
            }
        }
        assert!(self.pool.len() > before, "{}: no golden file begins with {beginning}", folder.display());
        self
    }

    /// Changed inputs grow no longer than this.
    pub fn longest(mut self, longest: usize) -> Self {
        self.longest = longest;
        self
    }

    /// Runs the target.
    ///
    /// # Panics
    /// The target panicked; the message holds the input.
    #[expect(clippy::print_stderr, reason = "how many inputs were tried is the result of a run")]
    pub fn run(mut self, mut target: impl FnMut(&[u8]) -> u64) {
        let budget = Budget::from_env();
        let mut random = Random::new(budget.seed);
        let mut outcomes = BTreeSet::new();
        let mut runs = 0_u64;
        for input in &self.pool {
            outcomes.insert(self.try_one(input, &mut target));
            runs += 1;
        }
        let (seeds, started) = (self.pool.len(), Instant::now());
        while runs < budget.runs && (!runs.is_multiple_of(64) || started.elapsed() < budget.time) {
            let input = random.change(&self.pool, self.longest);
            if outcomes.insert(self.try_one(&input, &mut target)) {
                if self.pool.len() < POOL {
                    self.pool.push(input);
                } else if let Some(old) = self.pool.get_mut(seeds + random.below(POOL - seeds)) {
                    *old = input;
                }
            }
            runs += 1;
        }
        eprintln!(
            "{}: {runs} inputs in {:.1} s, {} outcomes, seed {}",
            self.name,
            started.elapsed().as_secs_f64(),
            outcomes.len(),
            budget.seed
        );
    }

    fn try_one(&self, input: &[u8], target: &mut impl FnMut(&[u8]) -> u64) -> u64 {
        match catch_unwind(AssertUnwindSafe(|| target(input))) {
            Ok(outcome) => outcome,
            Err(_) => {
                let path = self.keep(input);
                panic!("{}: this input fails (kept as {}): {}", self.name, path.display(), hex(input));
            }
        }
    }

    fn keep(&self, input: &[u8]) -> PathBuf {
        let folder = env::temp_dir().join("flatlan-fuzz").join(self.name);
        let path = folder.join(format!("{:016x}", outcome(&input)));
        let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input));
        if kept.is_ok() { path } else { PathBuf::from("nothing: it could not be written") }
    }

    fn add_folder(&mut self, folder: &Path) {
        for path in files(folder) {
            self.add_file(&path);
        }
    }

    fn add_file(&mut self, path: &Path) {
        let bytes = fs::read(path).expect("a corpus file can be read");
        let is_hex = path.extension().is_some_and(|end| end == "hex");
        self.pool.push(if is_hex { from_hex(&bytes) } else { bytes });
    }
}

/// A number for what became of an input.
pub fn outcome(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// A number for an error: its text without numbers, which would make every input new.
pub fn refusal(error: &impl std::fmt::Display) -> u64 {
    let text: String = error.to_string().chars().filter(|c| !c.is_ascii_digit()).take(40).collect();
    outcome(&text)
}

/// Reads an input as a row of steps: one byte of operation, one of length in units of `unit`, the bytes.
pub fn steps(input: &[u8], unit: usize) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = input;
    std::iter::from_fn(move || {
        let [operation, length, tail @ ..] = rest else { return None };
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(*length) * unit));
        rest = tail;
        Some((*operation, bytes))
    })
}

/// What a run may cost.
struct Budget {
    runs: u64,
    time: Duration,
    seed: u64,
}

impl Budget {
    fn from_env() -> Self {
        let number = |name: &str, default: u64| {
            env::var(name)
                .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
        };
        Self {
            runs: number("FLATLAN_FUZZ_RUNS", 1_000_000),
            time: Duration::from_secs(number("FLATLAN_FUZZ_SECONDS", 2)),
            seed: number("FLATLAN_FUZZ_SEED", 1),
        }
    }
}

/// SplitMix64, and the changes that it makes.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// One of the pool, changed once or several times.
    fn change(&mut self, pool: &[Vec<u8>], longest: usize) -> Vec<u8> {
        let mut input = self.pick(pool);
        for _ in 0..=self.below(4) {
            self.change_once(&mut input, pool);
        }
        input.truncate(longest);
        input
    }

    fn pick(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let at = self.below(pool.len());
        pool.get(at).cloned().unwrap_or_default()
    }

    fn change_once(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let (len, at) = (input.len(), self.below(input.len()));
        match self.below(12) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.byte();
                }
            }
            2 => {
                let kind = self.below(INTERESTING.len());
                if let (Some(byte), Some(new)) = (input.get_mut(at), INTERESTING.get(kind)) {
                    *byte = *new;
                }
            }
            3 => input.insert(at, self.byte()),
            4 => {
                if len > 0 {
                    input.remove(at);
                }
            }
            5 => input.truncate(at),
            6 => {
                // cut a range out
                let end = (at + self.below(16)).min(len);
                input.drain(at..end);
            }
            7 => {
                // double a range
                let end = (at + self.below(32)).min(len);
                let range = input.get(at..end).unwrap_or_default().to_vec();
                input.splice(at..at, range);
            }
            8 => {
                // a whole number of two, four or eight bytes
                let value = match self.below(5) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => 1 << self.below(64),
                    3 => (1_u64 << self.below(64)).wrapping_sub(1),
                    _ => self.next(),
                };
                let width = [2, 4, 8].get(self.below(3)).copied().unwrap_or(2);
                let bytes = value.to_be_bytes();
                for (to, from) in input.iter_mut().skip(at).zip(bytes.iter().skip(8 - width)) {
                    *to = *from;
                }
            }
            9 => {
                // the head of this and the tail of another
                let other = self.pick(pool);
                let from = self.below(other.len());
                input.truncate(at);
                input.extend(other.into_iter().skip(from));
            }
            10 => {
                // a piece of another, in the middle
                let other = self.pick(pool);
                let from = self.below(other.len());
                let many = self.below(64);
                input.splice(at..at, other.into_iter().skip(from).take(many));
            }
            _ => {
                let many = self.below(32);
                input.extend(std::iter::repeat_with(|| self.byte()).take(many));
            }
        }
    }
}

/// Bytes that begin something: lengths, signs, CBOR's heads.
const INTERESTING: [u8; 20] =
    [0, 1, 2, 4, 0x10, 0x18, 0x1b, 0x20, 0x40, 0x5b, 0x7f, 0x80, 0x82, 0x9b, 0x9f, 0xa0, 0xbb, 0xbf, 0xf6, 0xff];

/// How many inputs are kept.
const POOL: usize = 4096;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

fn from_hex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u32> = text.iter().filter_map(|c| char::from(*c).to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + *digit as u8)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_panics_is_found_and_its_input_told() {
        let found = catch_unwind(|| {
            Fuzz::new("self-test").seeds([b"flatlan".to_vec()]).run(|input| {
                assert!(input.first() != Some(&b'F'), "found");
                0
            });
        });
        let message = *found.expect_err("one bit changes f to F").downcast::<String>().unwrap();
        assert!(message.contains("this input fails") && message.contains(": 46"), "{message}");
    }

    #[test]
    fn inputs_of_one_seed_are_the_same_each_time() {
        let inputs = |seed| {
            let mut random = Random::new(seed);
            let pool = [b"one".to_vec(), b"another".to_vec()];
            (0..100).map(|_| random.change(&pool, 64)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn steps_end_where_the_input_ends() {
        let input = [1, 2, 9, 9, 5, 200, 8];
        assert_eq!(steps(&input, 1).collect::<Vec<_>>(), [(1, &[9, 9][..]), (5, &[8][..])]);
    }
}
