//! A push from first byte to accepted ref: policy, pin the commit, stream the outcome.
