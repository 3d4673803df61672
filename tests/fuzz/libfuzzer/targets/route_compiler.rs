//! libFuzzer's driver of `karst_fuzz::route_compiler`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| karst_fuzz::route_compiler::run(data));
