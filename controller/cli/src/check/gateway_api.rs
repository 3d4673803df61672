//! The Gateway API, which Karst reads and does not install: other software uses it too, so the cluster's
//! owner decides on its version.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::failure;

/// The definition that every installation of the API has.
const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";

/// The annotation in which the API says its version.
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";

/// Major and minor versions that Karst is tested with or reads the kinds of.
const KNOWN: std::ops::RangeInclusive<(u32, u32)> = (1, 2)..=(1, 6);

/// Whether it is there, in a version that is known.
pub async fn all(client: &Client) -> Vec<Finding> {
    const ID: &str = "gateway_api";
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    match api.get_metadata_opt(GATEWAYS).await {
        Err(error) => vec![Finding::unknown(
            ID,
            &failure("looking for the Gateway API", &error),
        )],
        Ok(found) => vec![finding(found.as_ref().map(|found| {
            let annotations = found.metadata.annotations.as_ref();
            let version = annotations.and_then(|all| all.get(BUNDLE_VERSION));
            version.map(String::as_str).unwrap_or_default()
        }))],
    }
}

/// `None`: it is not there.
fn finding(version: Option<&str>) -> Finding {
    const ID: &str = "gateway_api";
    let Some(version) = version else {
        return Finding::warning(
            ID,
            "the Gateway API is not installed: there can be no waypoints, gateways and routes",
            "apply its standard-install.yaml (https://gateway-api.sigs.k8s.io/guides/), then \
             `karst install` or `helm upgrade` once more for the GatewayClasses",
        );
    };
    match number(version) {
        Some(number) if KNOWN.contains(&number) => {
            Finding::ok(ID, format!("the Gateway API is {version}"))
        }
        _ => Finding::warning(
            ID,
            format!("the Gateway API is of version {version:?}, with which Karst was not tried"),
            format!(
                "Karst knows {}.{} to {}.{}; fields that it does not know are passed over",
                KNOWN.start().0,
                KNOWN.start().1,
                KNOWN.end().0,
                KNOWN.end().1
            ),
        ),
    }
}

/// `v1.6.0-rc.1` as 1 and 6.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v')?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{all, finding};
    use crate::check::Level;
    use crate::testing::ApiServer;

    #[test]
    fn known_versions_are_well_and_others_are_told() {
        for version in ["v1.2.0", "v1.4.1", "v1.6.0-rc.1"] {
            assert_eq!(finding(Some(version)).level, Level::Ok, "{version}");
        }
        for version in ["v1.1.0", "v1.7.0", "v2.0.0", "", "1.4.0", "v1"] {
            assert_eq!(finding(Some(version)).level, Level::Warning, "{version}");
        }
    }

    #[tokio::test]
    async fn the_definition_is_looked_for() {
        let (server, client) = ApiServer::start().await;
        let found = all(&client).await;
        assert_eq!(found[0].level, Level::Warning);
        assert!(found[0].message.contains("not installed"), "{found:?}");
        let annotations = json!({"gateway.networking.k8s.io/bundle-version": "v1.6.0"});
        server.put(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gateways.gateway.networking.k8s.io",
            json!({"metadata": {"annotations": annotations}}),
        );
        assert_eq!(all(&client).await[0].level, Level::Ok);
    }
}
