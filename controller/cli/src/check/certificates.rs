//! The mesh's authority: its own certificate, and the root bundle in every namespace.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::ListParams;
use kube::{Api, Client};
use x509_parser::pem::Pem;

use super::Finding;
use crate::cluster::{self, SYSTEM_NAMESPACE, failure, is_forbidden};
use crate::failure::Failure;

/// The root bundle's ConfigMap and key.
const BUNDLE: (&str, &str) = ("karst-ca-root-cert", "root-cert.pem");

/// Secrets of the authority, the plugged-in one first, as the controller looks for them.
const AUTHORITIES: [&str; 2] = ["cacerts", "karst-ca"];

/// Days before the end of a certificate from which to warn.
const WARN_DAYS: i64 = 30;

/// Days before the end of a certificate from which it is a failure: workloads' certificates cannot
/// outlive it, and whoever is to renew it needs days.
const FAIL_DAYS: i64 = 3;

const DAY: i64 = 24 * 3600;

/// Looks at all of them.
pub async fn all(client: &Client) -> Vec<Finding> {
    let now = match cluster::get(client, "/version").await {
        Ok(answer) => answer.date,
        Err(failure) => return vec![Finding::unknown("certificates", &failure)],
    };
    let Some(now) = now.map(|now| now.as_second()) else {
        return vec![Finding::warning(
            "certificates",
            "the API server does not say what time it is",
            "look at the dates of the certificates by hand",
        )];
    };
    let mut findings = Vec::new();
    match bundles(client).await {
        Ok((bundles, namespaces)) => findings.extend(bundle_findings(&bundles, &namespaces, now)),
        Err(failure) => findings.push(Finding::unknown("certificates.root", &failure)),
    }
    findings.extend(authority(client, now).await);
    findings
}

/// Root bundles by namespace, and the namespaces that should have one.
async fn bundles(client: &Client) -> Result<(BTreeMap<String, String>, Vec<String>), Failure> {
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let params = ListParams::default().fields(&format!("metadata.name={}", BUNDLE.0));
    let maps = maps.list(&params).await;
    let maps = maps.map_err(|e| failure("listing root bundles", &e))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await;
    let namespaces = namespaces.map_err(|e| failure("listing namespaces", &e))?;
    let bundles = maps.items.into_iter().filter_map(|map| {
        let pem = map.data?.remove(BUNDLE.1)?;
        Some((map.metadata.namespace?, pem))
    });
    let live = namespaces
        .items
        .into_iter()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
        .filter_map(|namespace| namespace.metadata.name);
    Ok((bundles.collect(), live.collect()))
}

fn bundle_findings(
    bundles: &BTreeMap<String, String>,
    namespaces: &[String],
    now: i64,
) -> Vec<Finding> {
    const ID: &str = "certificates.root";
    let Some(own) = bundles.get(SYSTEM_NAMESPACE) else {
        return vec![Finding::failed(
            ID,
            format!("ConfigMap {SYSTEM_NAMESPACE}/{} is missing", BUNDLE.0),
            "the controller writes it; see its log",
        )];
    };
    let mut findings = vec![validity(ID, "root certificate", own, now)];
    let without: Vec<_> = namespaces
        .iter()
        .filter(|namespace| !bundles.contains_key(*namespace))
        .map(String::as_str)
        .collect();
    let other: Vec<_> = bundles
        .iter()
        .filter(|(_, pem)| *pem != own)
        .map(|(namespace, _)| namespace.as_str())
        .collect();
    for (names, what) in [(without, "no root bundle"), (other, "another root bundle")] {
        if !names.is_empty() {
            findings.push(Finding::warning(
                "certificates.bundles",
                format!("namespaces with {what}: {}", names.join(", ")),
                "the leading controller writes them within seconds; if it does not, see its log",
            ));
        }
    }
    if findings.len() == 1 {
        findings.push(Finding::ok(
            "certificates.bundles",
            format!("{} namespaces have the root bundle", bundles.len()),
        ));
    }
    findings
}

/// The authority's own certificate. Its Secret is read only if the caller may.
async fn authority(client: &Client, now: i64) -> Vec<Finding> {
    const ID: &str = "certificates.authority";
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    for name in AUTHORITIES {
        let secret = match secrets.get_opt(name).await {
            Ok(Some(secret)) => secret,
            Ok(None) => continue,
            Err(error) if is_forbidden(&error) => {
                return vec![Finding::warning(
                    ID,
                    format!("you may not read Secret {SYSTEM_NAMESPACE}/{name}"),
                    "run the check as a user who may, to see the authority's certificate",
                )];
            }
            Err(error) => {
                return vec![Finding::unknown(
                    ID,
                    &failure("reading the authority's Secret", &error),
                )];
            }
        };
        let data = secret.data.unwrap_or_default();
        let pem = data
            .get("ca-cert.pem")
            .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        return vec![match pem {
            Some(pem) => validity(
                ID,
                &format!("authority's certificate (Secret {name})"),
                &pem,
                now,
            ),
            None => Finding::failed(
                ID,
                format!("Secret {SYSTEM_NAMESPACE}/{name}: data[ca-cert.pem] is missing"),
                "restore the Secret, or delete it and restart the controller for a new root",
            ),
        }];
    }
    vec![Finding::failed(
        ID,
        format!("there is no Secret {SYSTEM_NAMESPACE}/{}", AUTHORITIES[1]),
        "the controller makes it when it starts; see its log",
    )]
}

/// How long the certificate of a PEM text that ends first is still good.
fn validity(id: &'static str, what: &str, pem: &str, now: i64) -> Finding {
    let times = match times(pem) {
        Ok(times) => times,
        Err(why) => {
            return Finding::failed(
                id,
                format!("the {what} cannot be read: {why}"),
                "restore it",
            );
        }
    };
    let (from, to) = times;
    if now < from {
        return Finding::failed(
            id,
            format!("the {what} is not valid before {} s from now", from - now),
            "set the clocks by NTP: it was made by one that is ahead",
        );
    }
    let (age, left) = ((now - from) / DAY, (to - now) / DAY);
    let message = format!("the {what} is {age} days old and valid for {left} more");
    let advice = "plug in a new one: see \"Certificates\" in controller/deploy/README.md";
    if to <= now {
        return Finding::failed(id, format!("the {what} has expired"), advice);
    }
    match left {
        ..FAIL_DAYS => Finding::failed(id, message, advice),
        FAIL_DAYS..WARN_DAYS => Finding::warning(id, message, advice),
        WARN_DAYS.. => Finding::ok(id, message),
    }
}

/// When the last certificate of a PEM text becomes valid, and when the first one ends.
fn times(pem: &str) -> Result<(i64, i64), String> {
    let mut times: Option<(i64, i64)> = None;
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|error| error.to_string())?;
        let certificate = block.parse_x509().map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        let own = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        times = Some(times.map_or(own, |(from, to)| (from.max(own.0), to.min(own.1))));
    }
    times.ok_or_else(|| "it holds no certificate".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{DAY, bundle_findings, times, validity};
    use crate::check::Level;

    /// Valid for ten years from 2026-11-22; its key was thrown away.
    const PEM: &str = include_str!("certificates/test-root.pem");

    #[test]
    fn the_age_and_the_rest_of_a_certificate_are_told() {
        let (from, to) = times(PEM).expect("times");
        let level = |now: i64| validity("x", "root", PEM, now).level;
        assert_eq!(level(from + 10 * DAY), Level::Ok);
        assert_eq!(level(to - 20 * DAY), Level::Warning);
        assert_eq!(level(to - DAY), Level::Failed);
        assert_eq!(level(to + 1), Level::Failed);
        assert_eq!(level(from - 100), Level::Failed);
        let message = validity("x", "root", PEM, from + 10 * DAY).message;
        assert!(message.starts_with("the root is 10 days old"), "{message}");
        assert_eq!(validity("x", "root", "nothing", 0).level, Level::Failed);
    }

    #[test]
    fn every_namespace_has_the_same_bundle() {
        let (from, _) = times(PEM).expect("times");
        let check = |bundles: &[(&str, &str)], expected: &[Level]| {
            let bundles: BTreeMap<_, _> = bundles
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            let namespaces = ["karst-system".to_owned(), "a".to_owned()];
            let found = bundle_findings(&bundles, &namespaces, from + 1);
            let levels: Vec<_> = found.iter().map(|finding| finding.level).collect();
            assert_eq!(levels, expected);
        };
        check(&[], &[Level::Failed]);
        check(
            &[("karst-system", PEM), ("a", PEM)],
            &[Level::Ok, Level::Ok],
        );
        check(&[("karst-system", PEM)], &[Level::Ok, Level::Warning]);
        check(
            &[("karst-system", PEM), ("a", "other")],
            &[Level::Ok, Level::Warning],
        );
    }
}
