//! What the answer of an authorizer means.
//!
//! A refusal stays one whatever else is wrong with it: what cannot be passed on of it is left out. An answer that
//! allows must be one that can be followed in everything.

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use http::{StatusCode, response};
use karst_api::ext_authz::check_response::HttpResponse;
use karst_api::ext_authz::header_value_option::HeaderAppendAction;
use karst_api::ext_authz::{CheckResponse, DeniedHttpResponse, HeaderValueOption, OkHttpResponse};
use prost::Message as _;

use super::change::{Changes, HeaderChange, How, MAX_HEADERS, MAX_PARAMETERS, is_free};
use super::provider::HttpCheck;
use super::{CheckError, Why};

/// What an authorizer has said.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request may go on, with these changes.
    Allowed(Box<Changes>),
    /// It may not.
    Refused(Box<Refused>),
}

/// The answer for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: Vec<HeaderChange>,
    /// Body.
    pub body: Bytes,
}

/// Reads a response to `Authorization/Check`: its body and trailers. `head` is checked for trailers as well, which
/// a short answer has there.
///
/// # Errors
/// The call failed, or it is none that can be followed.
pub fn grpc(
    head: &response::Parts,
    mut body: Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<Verdict, CheckError> {
    let unavailable = |text: String| CheckError::new(Why::Unavailable, text);
    if head.status != StatusCode::OK {
        return Err(unavailable(format!("status {}", head.status.as_u16())));
    }
    let status = |headers: &HeaderMap| -> Option<u32> {
        headers.get("grpc-status")?.to_str().ok()?.parse().ok()
    };
    let status = trailers
        .and_then(status)
        .or_else(|| status(&head.headers))
        .ok_or_else(|| unavailable("no grpc-status".to_owned()))?;
    if status != 0 {
        return Err(unavailable(format!("grpc-status {status}")));
    }
    if body.len() < 5 || body.get_u8() != 0 {
        return Err(unavailable("no message, or a compressed one".to_owned()));
    }
    if body.get_u32() as usize != body.len() {
        return Err(unavailable("not exactly one message".to_owned()));
    }
    let answer = CheckResponse::decode(body);
    let answer = answer.map_err(|_| unavailable("no CheckResponse".to_owned()))?;
    let code = answer.status.as_ref().map_or(0, |status| status.code);
    match (code, answer.http_response) {
        (0, Some(HttpResponse::DeniedResponse(_))) => {
            let text = "allows, with a response for who is refused";
            Err(CheckError::new(Why::AnswerInvalid, text))
        }
        (0, Some(HttpResponse::OkResponse(ok))) => allowed(&ok),
        (0, None) => Ok(Verdict::Allowed(Box::default())),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Ok(refused(denied)),
        (_, _) => Ok(refused(DeniedHttpResponse::default())),
    }
}

fn allowed(ok: &OkHttpResponse) -> Result<Verdict, CheckError> {
    let invalid = |text: &str| CheckError::new(Why::AnswerInvalid, text);
    let counts = [
        (ok.headers.len(), MAX_HEADERS),
        (ok.headers_to_remove.len(), MAX_HEADERS),
        (ok.response_headers_to_add.len(), MAX_HEADERS),
        (ok.query_parameters_to_set.len(), MAX_PARAMETERS),
        (ok.query_parameters_to_remove.len(), MAX_PARAMETERS),
    ];
    if counts.iter().any(|(count, most)| count > most) {
        return Err(invalid("too many headers or parameters"));
    }
    let changes = |options: &[HeaderValueOption]| {
        let changes = options.iter().map(change).filter_map(Result::transpose);
        changes.collect::<Result<Vec<_>, _>>()
    };
    let remove = ok.headers_to_remove.iter();
    // What must not go stays, as with Envoy.
    let remove = remove.filter_map(|name| HeaderName::try_from(name.as_str()).ok());
    let set = ok.query_parameters_to_set.iter();
    Ok(Verdict::Allowed(Box::new(Changes {
        upstream: changes(&ok.headers).map_err(invalid)?,
        remove: remove.filter(is_free).collect(),
        set_query: set.map(|it| (it.key.clone(), it.value.clone())).collect(),
        remove_query: ok.query_parameters_to_remove.clone(),
        downstream: changes(&ok.response_headers_to_add).map_err(invalid)?,
    })))
}

fn refused(denied: DeniedHttpResponse) -> Verdict {
    let status = denied.status.map(|status| status.code);
    let status = status.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    // 1xx is no answer.
    let status = status.filter(|status| !status.is_informational());
    let headers = denied.headers.iter().take(MAX_HEADERS);
    let headers = headers.filter_map(|option| change(option).ok().flatten());
    Verdict::Refused(Box::new(Refused {
        status: status.unwrap_or(StatusCode::FORBIDDEN),
        headers: headers.collect(),
        body: Bytes::from(denied.body),
    }))
}

/// A change of a header; `None` for one without a value, unless it is to be there.
fn change(option: &HeaderValueOption) -> Result<Option<HeaderChange>, &'static str> {
    let Some(header) = &option.header else {
        return Err("a header without a name");
    };
    let value = match header.raw_value.is_empty() {
        true => header.value.as_bytes(),
        false => header.raw_value.as_slice(),
    };
    let name = HeaderName::try_from(header.key.as_str());
    let name = name.map_err(|_| "a name of a header that is none")?;
    if !is_free(&name) {
        return Err("a header that is not the provider's to set");
    }
    if value.is_empty() && !option.keep_empty_value {
        return Ok(None);
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| "a value of a header that is none")?;
    let how = match (option.append, option.append_action()) {
        (Some(true), _) => How::Append,
        (Some(false), _) => How::Set,
        // In these messages what is not said means to replace.
        (
            None,
            HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::OverwriteIfExistsOrAdd,
        ) => How::Set,
        (None, HeaderAppendAction::AddIfAbsent) => How::Add,
        (None, HeaderAppendAction::OverwriteIfExists) => How::Replace,
    };
    Ok(Some(HeaderChange { how, name, value }))
}

/// Reads the response of an authorizer that is asked by HTTP.
///
/// # Errors
/// It failed itself (5xx).
pub fn http(head: &response::Parts, body: Bytes, check: &HttpCheck) -> Result<Verdict, CheckError> {
    if head.status.is_server_error() {
        let text = format!("status {}", head.status.as_u16());
        return Err(CheckError::new(Why::Unavailable, text));
    }
    let take = |wanted: &dyn Fn(&HeaderName) -> bool| -> Vec<HeaderChange> {
        let mut seen: Vec<&HeaderName> = Vec::new();
        let mut changes = Vec::new();
        let headers = head
            .headers
            .iter()
            .filter(|(name, _)| is_free(name) && wanted(name));
        for (name, value) in headers.take(MAX_HEADERS) {
            // The first replaces what is there, further ones come beside it.
            let how = if seen.contains(&name) {
                How::Append
            } else {
                How::Set
            };
            seen.push(name);
            changes.push(HeaderChange {
                how,
                name: name.clone(),
                value: value.clone(),
            });
        }
        changes
    };
    if head.status == StatusCode::OK {
        return Ok(Verdict::Allowed(Box::new(Changes {
            upstream: take(&|name| check.upstream_on_allow.has(name.as_str())),
            downstream: take(&|name| check.downstream_on_allow.has(name.as_str())),
            ..Changes::default()
        })));
    }
    let always = [CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE];
    let headers = take(&|name| match &check.downstream_on_deny {
        None => true,
        Some(names) => names.has(name.as_str()) || always.contains(name),
    });
    let status = match head.status {
        status if status.is_informational() => StatusCode::FORBIDDEN,
        status => status,
    };
    Ok(Verdict::Refused(Box::new(Refused {
        status,
        headers,
        body,
    })))
}
