//! Writes the inputs that fuzzing begins with: `cargo run -p pydist-fuzz-targets --example write_seeds`.

use std::io;
use std::path::Path;

use pydist_fuzz_targets::TARGETS;

fn main() -> io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for target in &TARGETS {
        let folder = seeds.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
