//! Features of the Gateway API, by the names that its conformance suite has for them.

/// A feature, and whether it is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// The suite's name for it.
    pub name: &'static str,
    /// Whether it is supported.
    pub support: Support,
}

/// Whether a feature is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It is, and GatewayClasses say so.
    Yes,
    /// It is not, for this reason.
    No(&'static str),
}

const fn yes(name: &'static str) -> Feature {
    Feature {
        name,
        support: Support::Yes,
    }
}

const fn no(name: &'static str, reason: &'static str) -> Feature {
    Feature {
        name,
        support: Support::No(reason),
    }
}

/// All features of Gateway API v1.6, in the order that GatewayClasses list them in: by name.
pub const FEATURES: [Feature; 58] = [
    yes("BackendTLSPolicy"),
    yes("BackendTLSPolicySANValidation"),
    yes("GRPCRoute"),
    yes("GRPCRouteNamedRouteRule"),
    yes("Gateway"),
    yes("GatewayAddressEmpty"),
    yes("GatewayBackendClientCertificate"),
    yes("GatewayFrontendClientCertificateValidation"),
    yes("GatewayFrontendClientCertificateValidationInsecureFallback"),
    yes("GatewayHTTPListenerIsolation"),
    yes("GatewayHTTPSListenerDetectMisdirectedRequests"),
    yes("GatewayInfrastructurePropagation"),
    yes("GatewayPort8080"),
    yes("GatewayStaticAddresses"),
    yes("HTTPRoute"),
    yes("HTTPRoute303RedirectStatusCode"),
    yes("HTTPRoute307RedirectStatusCode"),
    yes("HTTPRoute308RedirectStatusCode"),
    yes("HTTPRouteBackendProtocolH2C"),
    yes("HTTPRouteBackendProtocolWebSocket"),
    yes("HTTPRouteBackendRequestHeaderModification"),
    yes("HTTPRouteBackendTimeout"),
    yes("HTTPRouteCORS"),
    yes("HTTPRouteDestinationPortMatching"),
    yes("HTTPRouteHostRewrite"),
    yes("HTTPRouteMethodMatching"),
    yes("HTTPRouteNamedRouteRule"),
    yes("HTTPRouteParentRefPort"),
    yes("HTTPRoutePathRedirect"),
    yes("HTTPRoutePathRewrite"),
    yes("HTTPRoutePortRedirect"),
    yes("HTTPRouteQueryParamMatching"),
    yes("HTTPRouteRequestMirror"),
    yes("HTTPRouteRequestMultipleMirrors"),
    yes("HTTPRouteRequestPercentageMirror"),
    yes("HTTPRouteRequestTimeout"),
    yes("HTTPRouteResponseHeaderModification"),
    yes("HTTPRouteRetry"),
    yes("HTTPRouteRetryBackendTimeout"),
    yes("HTTPRouteRetryConnectionError"),
    yes("HTTPRouteSchemeRedirect"),
    yes("ListenerSet"),
    yes("Mesh"),
    yes("MeshClusterIPMatching"),
    yes("MeshConsumerRoute"),
    yes("MeshHTTPRouteBackendRequestHeaderModification"),
    yes("MeshHTTPRouteNamedRouteRule"),
    yes("MeshHTTPRouteQueryParamMatching"),
    yes("MeshHTTPRouteRedirectPath"),
    yes("MeshHTTPRouteRedirectPort"),
    yes("MeshHTTPRouteRewritePath"),
    yes("MeshHTTPRouteSchemeRedirect"),
    yes("ReferenceGrant"),
    yes("TCPRoute"),
    yes("TLSRoute"),
    yes("TLSRouteModeMixed"),
    yes("TLSRouteModeTerminate"),
    no(
        "UDPRoute",
        "the mesh carries TCP only; UDP is neither captured nor encrypted, so a route for it would \
         promise what is not kept",
    ),
];

#[cfg(test)]
mod tests {
    use super::{FEATURES, Support};

    #[test]
    fn features_are_in_order_and_few_enough_for_a_status() {
        assert!(FEATURES.is_sorted_by(|a, b| a.name < b.name));
        let supported = FEATURES
            .iter()
            .filter(|feature| feature.support == Support::Yes);
        // `supportedFeatures` takes 64 entries.
        assert!(supported.count() <= 64);
        for feature in FEATURES {
            if let Support::No(reason) = feature.support {
                assert!(!reason.is_empty(), "{}", feature.name);
            }
        }
    }
}
