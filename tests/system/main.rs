//! End-to-end tests: real primaries, real servers, real signals. One module per subject.
//!
//! Every test has a [`croupier_tests::Guard`], asserts order and not time, and leaves nothing.

mod harness;
