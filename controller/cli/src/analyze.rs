//! stub
use crate::args::Analyze;
use crate::failure::Failure;
pub fn run(_args: &Analyze) -> Result<String, Failure> {
    Err(Failure::failed("x", "y"))
}
