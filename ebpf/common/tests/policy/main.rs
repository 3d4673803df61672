// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What policies mean, from outside: [`table`] says it case by case, [`random`] holds the compiled
//! matcher to [`reference`](mod@reference), a second and slow one, on policies and connections that
//! nobody thought of; [`explained`] holds what people are told to it as well. [`limits`] has what is refused.

#![expect(clippy::unwrap_used, clippy::panic, reason = "it is a test")]

mod explained;
mod limits;
mod random;
mod reference;
mod table;
