//! Writes made-up results into a folder, to look at a report without a run of an hour:
//! `cargo run -p croupier-bench --example synthetic -- DIR`, then `croupier-bench report DIR`.
//!
//! Promises: they say that they are synthetic wherever they are shown. Never does: measure.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("name a folder")?;
    std::fs::create_dir_all(&folder)?;
    synthetic::whole(1, 5).write(&folder)?;
    Ok(())
}
