// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The promise to aya that these types may be read from and written to maps as bytes.

use aya::Pod as Bytes;

use crate::address::{Endpoint, Ip};
use crate::layout::{
    Authorisation, Config, EndpointKey, Flow, FlowEvent, Pod, PublishedKey, ServiceEndpoints,
    SocketState, Tuple, VerdictKey,
};

// SAFETY: four words, no padding, every bit pattern valid.
unsafe impl Bytes for Ip {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for Endpoint {}
// SAFETY: `repr(C)` integers and byte arrays without holes (sizes asserted in `layout`).
unsafe impl Bytes for Pod {}
// SAFETY: `repr(C)` integers without holes (sizes asserted in `layout`).
unsafe impl Bytes for SocketState {}
// SAFETY: `repr(C)` integers without holes (sizes asserted in `layout`).
unsafe impl Bytes for PublishedKey {}
// SAFETY: two endpoints, themselves without holes (sizes asserted in `layout`).
unsafe impl Bytes for Tuple {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for Authorisation {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for Config {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for VerdictKey {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for ServiceEndpoints {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for EndpointKey {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for Flow {}
// SAFETY: `repr(C)` integers with explicit padding (sizes asserted in `layout`).
unsafe impl Bytes for FlowEvent {}
