//! What a store says about itself, so that damage can be told from the truth: how many records it has, what they add up to, and the
//! newest revision.
//!
//! The seal is written with every group of commits, in the same batch. A copy is in the journal (`super::journal`), with the group itself:
//! a store that was cut off behind it, or put back to an older state, is found out. Pure.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Revision;

/// A sum of records that does not depend on their order, modulo 2²⁵⁶; records can be taken out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sum([u64; 4]);

impl Sum {
    /// Of one record.
    pub fn of(key: &str, revision: Revision, value: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // The length first, so that no part of a key can pass for part of a value.
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(key.as_bytes());
        hash.update(revision.0.to_be_bytes());
        hash.update(value);
        let hash = hash.finalize();
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self(words)
    }

    fn combine(&mut self, other: Self, step: impl Fn(u64, u64, bool) -> (u64, bool)) {
        let mut carry = false;
        for (word, theirs) in self.0.iter_mut().zip(other.0).rev() {
            (*word, carry) = step(*word, theirs, carry);
        }
    }

    /// Takes a record in.
    pub fn add(&mut self, other: Self) {
        self.combine(other, |a, b, carry| {
            let (sum, first) = a.overflowing_add(b);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (sum, first | second)
        });
    }

    /// Takes a record out.
    pub fn subtract(&mut self, other: Self) {
        self.combine(other, |a, b, borrow| {
            let (rest, first) = a.overflowing_sub(b);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (rest, first | second)
        });
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> Self {
        sum.0.map(|word| format!("{word:016x}")).concat()
    }
}

impl TryFrom<String> for Sum {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:.80?} is no sum");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut words = [0; 4];
        for (place, word) in words.iter_mut().enumerate() {
            *word = u64::from_str_radix(&text[place * 16..][..16], 16).map_err(|_| wrong())?;
        }
        Ok(Self(words))
    }
}

/// What a store says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Shape of the records; see [`super::migrations`].
    pub version: u32,
    /// Of the newest commit.
    pub revision: Revision,
    /// Records.
    pub count: u64,
    /// Of the records.
    pub sum: Sum,
}

impl Seal {
    /// Of a store without records.
    pub fn empty(version: u32) -> Self {
        Self { version, revision: Revision(0), count: 0, sum: Sum::default() }
    }

    /// Replaces one record by another; `None`: there was, or is to be, none.
    pub fn replace(&mut self, old: Option<Sum>, new: Option<Sum>) {
        if let Some(old) = old {
            self.sum.subtract(old);
            self.count -= 1;
        }
        if let Some(new) = new {
            self.sum.add(new);
            self.count += 1;
        }
    }
}

/// Why a store is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Made by a later Berth.
    #[error(
        "it was written by a newer berth (its version is {found}, this one knows up to {known}); start that one, or a newer one"
    )]
    Newer { found: u32, known: u32 },
    /// Acknowledged commits are missing at the end.
    #[error(
        "commits up to revision {acknowledged} were acknowledged, but it ends at revision {found}: the last {} are lost",
        .acknowledged - .found
    )]
    CutOff { acknowledged: u64, found: u64 },
    /// Records are missing, damaged or come from another time.
    #[error("its records are not those that were written: {0}")]
    Records(String),
    /// A file that belongs to it is gone or unreadable.
    #[error("{0}")]
    File(String),
}

/// What was read from a directory, to be judged.
pub struct Found {
    /// From the database.
    pub seal: Option<Seal>,
    /// From the journal.
    pub acknowledged: Option<Seal>,
    /// The newest revision of a record, their number and what they add up to.
    pub newest: Revision,
    pub count: u64,
    pub sum: Sum,
}

/// The version before there were seals.
pub const UNSEALED: u32 = 1;

/// What the store is, if it is whole. A store without a seal is of version 1; one without records as well counts as new. The journal is
/// always made before the first seal.
pub fn judge(found: &Found, known: u32) -> Result<Seal, Damage> {
    let newest = [found.seal, found.acknowledged].into_iter().flatten().map(|seal| seal.version).max();
    if let Some(version) = newest.filter(|version| *version > known) {
        return Err(Damage::Newer { found: version, known });
    }
    let contents = Seal { version: UNSEALED, revision: found.newest, count: found.count, sum: found.sum };
    let seal = match (found.seal, found.acknowledged) {
        (None, None) => return Ok(contents),
        (Some(seal), None) => {
            let text = format!("its journal is missing; the database is at revision {}", seal.revision.0);
            return Err(Damage::File(text));
        }
        // The death of the server that was about to seal an old store.
        (None, Some(acknowledged)) if acknowledged.version == UNSEALED => contents,
        (None, Some(acknowledged)) => {
            return Err(Damage::CutOff { acknowledged: acknowledged.revision.0, found: 0 });
        }
        (Some(seal), Some(_)) => seal,
    };
    if let Some(acknowledged) = found.acknowledged {
        if acknowledged.revision > seal.revision {
            let (acknowledged, found) = (acknowledged.revision.0, seal.revision.0);
            return Err(Damage::CutOff { acknowledged, found });
        }
        if acknowledged.revision == seal.revision && acknowledged.version == seal.version && acknowledged != seal {
            return Err(Damage::Records("what they add up to is not what was acknowledged".into()));
        }
    }
    if (found.count, found.sum) != (seal.count, seal.sum) {
        let text =
            format!("there should be {}, and {} are there, or some of them have changed", seal.count, found.count);
        return Err(Damage::Records(text));
    }
    if found.newest > seal.revision {
        let text = format!("one is of revision {}, the newest should be {}", found.newest.0, seal.revision.0);
        return Err(Damage::Records(text));
    }
    Ok(seal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(version: u32, revision: u64, count: u64) -> Seal {
        Seal { version, revision: Revision(revision), count, sum: Sum([0, 0, 0, count]) }
    }

    proptest! {
        #[test]
        fn what_is_taken_out_was_never_in(records in prop::collection::vec((".{0,8}", 0..9u64, prop::collection::vec(any::<u8>(), 0..9)), 0..20), cut in 0..20usize) {
            let sums: Vec<Sum> = records.iter().map(|(key, revision, value)| Sum::of(key, Revision(*revision), value)).collect();
            let cut = cut.min(sums.len());
            let mut all = Seal::empty(2);
            sums.iter().for_each(|sum| all.replace(None, Some(*sum)));
            sums[cut..].iter().for_each(|sum| all.replace(Some(*sum), None));
            let mut few = Seal::empty(2);
            sums[..cut].iter().rev().for_each(|sum| few.replace(None, Some(*sum)));
            prop_assert_eq!(all, few);
            let text: String = all.sum.into();
            prop_assert_eq!(Sum::try_from(text).unwrap(), all.sum);
        }
    }

    #[test]
    fn every_part_of_a_record_counts() {
        let base = Sum::of("a/b", Revision(1), b"x");
        for other in
            [Sum::of("a/", Revision(1), b"bx"), Sum::of("a/b", Revision(2), b"x"), Sum::of("a/b", Revision(1), b"y")]
        {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn only_a_whole_store_is_taken() {
        let (a, b, c) = (seal(2, 7, 3), seal(2, 6, 2), seal(2, 8, 3));
        let old = seal(1, 0, 0);
        // Seal in the database, in the file; records and their newest revision; what comes of it.
        type Case = (Option<Seal>, Option<Seal>, u64, u64, Result<u32, &'static str>);
        let cases: [Case; 14] = [
            (None, None, 0, 0, Ok(1)),
            (None, None, 3, 7, Ok(1)),
            (None, Some(old), 3, 7, Ok(1)),
            (Some(a), Some(a), 3, 7, Ok(2)),
            // Written, and not acknowledged before the power went.
            (Some(a), Some(b), 3, 7, Ok(2)),
            (Some(a), Some(old), 3, 7, Ok(2)),
            (Some(a), Some(c), 3, 7, Err("the last 1 are lost")),
            (None, Some(a), 0, 0, Err("the last 7 are lost")),
            (Some(a), None, 3, 7, Err("missing")),
            (Some(a), Some(a), 2, 7, Err("there should be 3, and 2")),
            (Some(a), Some(seal(2, 7, 2)), 3, 7, Err("not what was acknowledged")),
            (Some(a), Some(a), 3, 9, Err("one is of revision 9")),
            (Some(seal(3, 7, 3)), Some(a), 3, 7, Err("newer berth")),
            (Some(a), Some(seal(3, 7, 3)), 3, 7, Err("newer berth")),
        ];
        for (number, (seal, acknowledged, count, newest, wanted)) in cases.into_iter().enumerate() {
            let found = Found { seal, acknowledged, newest: Revision(newest), count, sum: Sum([0, 0, 0, count]) };
            match (judge(&found, 2), wanted) {
                (Ok(seal), Ok(version)) => assert_eq!(seal.version, version, "case {number}"),
                (Err(damage), Err(text)) => assert!(damage.to_string().contains(text), "case {number}: {damage}"),
                (found, wanted) => panic!("case {number}: {found:?} instead of {wanted:?}"),
            }
        }
    }
}
