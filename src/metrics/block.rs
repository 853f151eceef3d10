//! Five minutes of an environment, packed: column by column, each number as its distance from the column's least, in as many bits as the
//! largest distance takes. Most columns hardly move, so that a quiet environment takes some dozens of bytes. Pure.

use std::sync::Arc;

use super::point::{COLUMNS, Row};

/// Points in a block.
pub(super) const SLOTS: u32 = 30;

/// The first tick of the block that `tick` is in.
pub(super) fn start_of(tick: u32) -> u32 {
    tick - tick % SLOTS
}

/// A packed block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Its first tick.
    pub(super) start: u32,
    /// A bit for each slot that has a point.
    pub(super) present: u32,
    pub(super) bytes: Arc<[u8]>,
}

impl Block {
    /// Packs rows; each with its slot, in order.
    pub(super) fn pack(start: u32, rows: &[(u8, Row)]) -> Self {
        let present = rows.iter().fold(0, |present, (slot, _)| present | 1 << slot);
        let mut bytes = vec![0; 4];
        let mut used = 0_u32;
        for column in 0..COLUMNS {
            let numbers = || rows.iter().map(|(_, row)| row[column]);
            let (least, most) = (numbers().min().unwrap_or(0), numbers().max().unwrap_or(0));
            if most == 0 {
                continue;
            }
            used |= 1 << column;
            let width = u32::BITS - (most - least).leading_zeros();
            write_number(&mut bytes, least);
            bytes.push(width as u8);
            write_bits(&mut bytes, width, numbers().map(|number| number - least));
        }
        bytes[..4].copy_from_slice(&used.to_le_bytes());
        Self { start, present, bytes: bytes.into() }
    }

    /// The rows with their ticks; `None` when the bytes are not a packed block.
    pub(super) fn unpack(&self) -> Option<Vec<(u32, Row)>> {
        let ticks = (0..SLOTS).filter(|slot| self.present & 1 << slot != 0);
        let mut rows: Vec<(u32, Row)> = ticks.map(|slot| (self.start + slot, [0; COLUMNS])).collect();
        let (used, mut rest) = self.bytes.split_first_chunk::<4>()?;
        let used = u32::from_le_bytes(*used);
        for column in (0..COLUMNS).filter(|column| used & 1 << column != 0) {
            let least = read_number(&mut rest)?;
            let (width, after) = rest.split_first()?;
            let width = u32::from(*width);
            let length = (rows.len() * width as usize).div_ceil(8);
            if width > u32::BITS || after.len() < length {
                return None;
            }
            let (packed, after) = after.split_at(length);
            rest = after;
            for (index, (_, row)) in rows.iter_mut().enumerate() {
                row[column] = least.checked_add(read_bits(packed, index, width))?;
            }
        }
        rest.is_empty().then_some(rows)
    }
}

/// Seven bits at a time, the least first; the highest bit says that more follow (LEB128).
fn write_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<u32> {
    let mut number = 0_u64;
    for shift in (0..35).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return number.try_into().ok();
        }
    }
    None
}

fn write_bits(bytes: &mut Vec<u8>, width: u32, numbers: impl Iterator<Item = u32>) {
    let (mut held, mut bits) = (0_u64, 0);
    for number in numbers {
        held |= u64::from(number) << bits;
        bits += width;
        while bits >= 8 {
            bytes.push(held as u8);
            held >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        bytes.push(held as u8);
    }
}

fn read_bits(packed: &[u8], index: usize, width: u32) -> u32 {
    let first = index * width as usize;
    let bits = packed[first / 8..].iter().take(5).enumerate();
    let held = bits.fold(0_u64, |held, (at, byte)| held | u64::from(*byte) << (8 * at));
    let mask = (1_u64 << width) - 1;
    ((held >> (first % 8)) & mask) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            slots in prop::collection::btree_set(0..SLOTS as u8, 0..30),
            numbers in prop::collection::vec(prop_oneof![Just(0), 0..100_u32, any::<u32>()], COLUMNS * 30),
        ) {
            let rows: Vec<(u8, Row)> = slots.iter().enumerate().map(|(index, slot)| {
                (*slot, std::array::from_fn(|column| numbers[(index * 7 + column) % numbers.len()]))
            }).collect();
            let block = Block::pack(600, &rows);
            let want: Vec<(u32, Row)> = rows.iter().map(|(slot, row)| (600 + u32::from(*slot), *row)).collect();
            prop_assert_eq!(block.unpack().unwrap(), want);
        }

        #[test]
        fn anything_else_is_no_block(present in any::<u32>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // It may be one by chance; it must not panic.
            let _ = Block { start: 0, present, bytes: bytes.into() }.unpack();
        }
    }

    #[test]
    fn what_does_not_move_takes_next_to_nothing() {
        let mut row = [0; COLUMNS];
        (row[0], row[4], row[7], row[8]) = (7, 20_000, 2, 2);
        let rows: Vec<(u8, Row)> = (0..30).map(|slot| (slot, row)).collect();
        assert!(Block::pack(0, &rows).bytes.len() < 20);
    }
}
