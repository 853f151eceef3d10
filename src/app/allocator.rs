//! What the allocator keeps of what is free.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` of mimalloc's `mimalloc.h` (version 3), for which the library has no name.
const PURGE_DELAY: c_int = 15;
/// Milliseconds after which free memory may go back to the kernel, which it does when something else is freed then. Version 3 has a second, in which
/// a log that many read leaves some tens of MiB behind, in one thread's place after another's.
const SOON: c_long = 10;

/// Lets free memory go back to the kernel soon, unless the environment says otherwise (`MIMALLOC_PURGE_DELAY`). To be called while there is one thread.
pub(super) fn give_back_soon() {
    // SAFETY: sets a number, which nobody reads meanwhile; numbers that are no option are ignored.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, SOON) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number, which nobody else in these tests sets.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        let said = std::env::var("MIMALLOC_PURGE_DELAY").ok().map(|text| text.parse().unwrap());
        assert_eq!(delay(), said.unwrap_or(1000), "its usual value, which no other option has but one of debugging");
        give_back_soon();
        assert_eq!(delay(), said.unwrap_or(SOON));
    }
}
