//! Live connections of the agent.

use crate::inspect::object::Object;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "connection",
    nothing: "no connections",
    columns: &[
        ("POD", "/pod"),
        ("DIRECTION", "/direction"),
        ("SOURCE", "/src/addr"),
        ("DESTINATION", "/dst/addr"),
        ("SERVICE", "/service"),
        ("SECURITY", "/connection_security_policy"),
        ("CIPHER", "/tls/cipher"),
        ("KEY EXCHANGE", "/tls/key_exchange"),
        ("SENT", "/bytes_sent"),
        ("RECEIVED", "/bytes_recv"),
    ],
    keys: &[Key::Name, Key::Uid],
    list: |place, _| place.list("/v1/connections"),
    ..Object::PLAIN
};
