#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pydist_fuzz_targets::run("connection", input));
