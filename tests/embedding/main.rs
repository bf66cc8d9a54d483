//! The library for programs in other languages: the header is the source's, `scripts/install` makes what
//! the documents promise, and the examples in C, C++, Python and Rust build by the documents' commands
//! and give the numbers of `engine predict`.
//!
//! # Layout
//! [`fixture`], the installed library and a trained model; [`header`], include/engine.h; [`linking`],
//! what libraries and programs need and hold; [`examples`]; [`hammer`], 16 threads of random calls
//! (`hammer.c`); [`device`], a card's arrays on the emulator (`device.c`).

mod device;
mod examples;
mod fixture;
mod hammer;
mod header;
mod linking;
#[path = "../emulator/stand_in.rs"]
#[allow(dead_code, reason = "the emulator's own tests use the rest")]
mod stand_in;
