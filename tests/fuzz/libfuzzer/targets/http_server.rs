//! libFuzzer's driver of `karst_fuzz::http_server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| karst_fuzz::http_server::run(data));
