//! What the allocator keeps of what is free.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` of mimalloc's `mimalloc.h` (version 3), for which the library has no name.
const PURGE_DELAY: c_int = 15;
/// Milliseconds until free memory goes back to the kernel. Version 3 waits for a second, in which a log that many read leaves some tens of MiB behind,
/// in one thread's place after another's.
const SOON: c_long = 10;

/// Lets free memory go back to the kernel soon, unless the environment says otherwise (`MIMALLOC_PURGE_DELAY`).
pub(super) fn give_back_soon() {
    // SAFETY: sets a number that mimalloc reads when something is freed; other numbers of options are ignored.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, SOON) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000, "its usual value, which no other option has but one of debugging");
        give_back_soon();
        assert_eq!(delay(), SOON);
    }
}
