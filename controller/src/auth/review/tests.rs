use super::*;
use crate::{
    cluster::fake::{Answer, Fake},
    store::{Update, testing},
};
use karst_core::{Index, MeshConfig, Object};
use serde_json::{Value, json};

fn token(claims: &Value) -> String {
    format!("e30.{}.c2ln", BASE64URL.encode(claims.to_string()))
}

fn status(value: Value) -> TokenReviewStatus {
    serde_json::from_value(value).unwrap()
}

fn accepted() -> Value {
    json!({
        "authenticated": true, "audiences": ["karst-ca"],
        "user": {
            "username": "system:serviceaccount:karst-system:karst-node-agent",
            "extra": {NODE_NAME: ["n1"], POD_NAME: ["agent-x"], POD_UID: ["uid-x"]},
        },
    })
}

#[test]
fn what_cannot_be_accepted_is_not_asked_about() {
    for (aud, exp, expected) in [
        (json!(["karst-ca"]), 1000, Ok(())),
        (json!("karst-ca"), 1000, Ok(())),
        (json!(["other", "karst-ca"]), 1000, Ok(())),
        (json!(["karst-ca"]), 995, Ok(())),
        (json!(["karst-ca"]), 990, Err(AuthError::Expired)),
        (json!(["other"]), 2000, Err(AuthError::WrongAudience)),
        (json!("karst"), 2000, Err(AuthError::WrongAudience)),
    ] {
        let claims = unverified(&token(&json!({"aud": aud, "exp": exp}))).unwrap();
        assert_eq!(
            plausible(&claims, "karst-ca", 1000),
            expected,
            "{aud} {exp}"
        );
    }
    let claims = unverified(&token(&json!({"exp": 2000}))).unwrap();
    let refused = plausible(&claims, "karst-ca", 1000);
    assert_eq!(refused, Err(AuthError::WrongAudience));
}

#[test]
fn garbage_is_malformed() {
    let long = "a".repeat(MAX_TOKEN_BYTES + 1);
    let no_exp = token(&json!({"aud": "karst-ca"}));
    for text in [
        "",
        "a",
        "a.b",
        "a.b.c",
        "a.e30.c.d",
        "a.!.c",
        &long,
        &no_exp,
    ] {
        let error = unverified(text).unwrap_err();
        assert_eq!(error, AuthError::MalformedToken, "{text:.20}");
    }
}

#[test]
fn an_accepted_token_says_whose_it_is() {
    let bound = bound(status(accepted()), "karst-ca", 7).unwrap();
    assert_eq!(bound.account.to_string(), "karst-system/karst-node-agent");
    assert_eq!(
        (bound.node.as_str(), bound.pod_name.as_str()),
        ("n1", "agent-x")
    );
    assert_eq!((bound.pod_uid.as_str(), bound.expires_at), ("uid-x", 7));
}

#[test]
fn answers_that_do_not_prove_enough_are_refusals() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut value = accepted();
        change(&mut value);
        bound(status(value), "karst-ca", 7).unwrap_err()
    };
    let rejected = refused(&|v| {
        v["authenticated"] = json!(false);
        v["error"] = json!("expired");
    });
    assert_eq!(rejected, AuthError::Rejected("expired".to_owned()));
    let audience = refused(&|v| v["audiences"] = json!([]));
    assert_eq!(audience, AuthError::WrongAudience);
    let audience = refused(&|v| v["audiences"] = json!(["https://api"]));
    assert_eq!(audience, AuthError::WrongAudience);
    let user = refused(&|v| v["user"]["username"] = json!("system:node:n1"));
    assert_eq!(user.reason(), "auth_missing_claim");
    for key in [NODE_NAME, POD_NAME, POD_UID] {
        for bad in [json!([]), json!([""]), json!(["a", "b"])] {
            let error = refused(&|v| v["user"]["extra"][key] = bad.clone());
            assert_eq!(error, AuthError::MissingClaim(key.to_owned()));
        }
    }
}

/// Says what the API server would of any token.
async fn reviewing() -> Fake {
    Fake::start(|asked| {
        assert_eq!(asked.path, "/apis/authentication.k8s.io/v1/tokenreviews");
        Answer::json(&json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {}, "status": accepted(),
        }))
    })
    .await
}

fn tokens(fake: &Fake) -> ReviewedTokens {
    let store = Arc::new(Store::new(Index::new(MeshConfig::default())));
    testing::apply_gateway(&store, "shop", "front");
    let pod = |namespace: &str, name: &str, uid: &str, account: &str, phase: &str| {
        let value = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "spec": {"nodeName": "n1", "serviceAccountName": account, "containers": []},
            "status": {"phase": phase}});
        Update::Apply(Object::from_value(value).unwrap().unwrap())
    };
    let refused = store.update(vec![
        pod(
            "karst-system",
            "agent-x",
            "uid-x",
            "karst-node-agent",
            "Running",
        ),
        pod(
            "karst-system",
            "ended",
            "uid-ended",
            "karst-node-agent",
            "Failed",
        ),
        pod("karst-system", "other", "uid-other", "other", "Running"),
        pod("shop", "front-1", "uid-front", "front", "Running"),
        pod("shop", "front-2", "uid-gone", "front", "Succeeded"),
    ]);
    assert!(refused.is_empty());
    let agents = crate::auth::NodeAgents(vec![ServiceAccount {
        namespace: "karst-system".to_owned(),
        name: "karst-node-agent".to_owned(),
    }]);
    let callers = Callers::new(agents, store.clone());
    ReviewedTokens::new(&fake.cluster, "karst-ca".to_owned(), callers, store)
}

fn claims() -> Value {
    json!({
        "aud": ["karst-ca"], "exp": 99_999_999_999_u64,
        "kubernetes.io": {
            "namespace": "karst-system",
            "serviceaccount": {"name": "karst-node-agent", "uid": "1"},
            "pod": {"name": "agent-x", "uid": "uid-x"},
            "node": {"name": "n1"},
        },
    })
}

#[tokio::test]
async fn an_agents_token_is_asked_about_once() {
    let fake = reviewing().await;
    let tokens = tokens(&fake);
    let token = token(&claims());
    for _ in 0..3 {
        let caller = tokens.check(&token).await.unwrap();
        assert_eq!(caller.account.to_string(), "karst-system/karst-node-agent");
        assert_eq!(caller.node.as_deref(), Some("n1"));
    }
    let asked = fake.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].body.contains(&token));
}

/// The claims of a token of the Gateway shop/front.
fn proxy_claims() -> Value {
    let mut claims = claims();
    claims["kubernetes.io"] = json!({
        "namespace": "shop", "serviceaccount": {"name": "front", "uid": "2"},
        "pod": {"name": "front-1", "uid": "uid-front"}, "node": {"name": "n1"},
    });
    claims
}

#[tokio::test]
async fn a_proxys_token_is_asked_about_and_must_be_of_its_live_pod() {
    let fake = Fake::start(|_| {
        let mut status = accepted();
        status["user"] = json!({
            "username": "system:serviceaccount:shop:front",
            "extra": {NODE_NAME: ["n1"], POD_NAME: ["front-1"], POD_UID: ["uid-front"]},
        });
        Answer::json(&json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": {}, "status": status,
        }))
    })
    .await;
    let tokens = tokens(&fake);
    let caller = tokens.check(&token(&proxy_claims())).await.unwrap();
    assert_eq!(caller.account.to_string(), "shop/front");
    assert_eq!(fake.asked().len(), 1);
    for (place, value, reason) in [
        ("/kubernetes.io/pod/uid", "uid-gone", "auth_pod_unknown"),
        ("/kubernetes.io/pod/uid", "uid-x", "auth_pod_mismatch"),
        (
            "/kubernetes.io/serviceaccount/name",
            "web",
            "auth_not_node_agent",
        ),
        ("/kubernetes.io/namespace", "other", "auth_not_node_agent"),
    ] {
        let mut claims = proxy_claims();
        *claims.pointer_mut(place).unwrap() = json!(value);
        let error = tokens.check(&token(&claims)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{place} {value}");
    }
    assert_eq!(fake.asked().len(), 1, "none of them was asked about");
    // With its Gateway goes what it may ask for, whatever was answered before.
    testing::delete_gateway(&tokens.store, "shop", "front");
    let error = tokens.check(&token(&proxy_claims())).await.unwrap_err();
    assert_eq!(error, AuthError::NotNodeAgent);
}

#[tokio::test]
async fn what_is_no_agents_live_pod_is_refused_without_asking() {
    let fake = reviewing().await;
    let tokens = tokens(&fake);
    let cases: [(&str, Value, &str); 9] = [
        ("/kubernetes.io", json!({}), "auth_missing_claim"),
        ("/kubernetes.io/namespace", json!(""), "auth_missing_claim"),
        (
            "/kubernetes.io/serviceaccount",
            json!({}),
            "auth_missing_claim",
        ),
        ("/kubernetes.io/pod", json!({}), "auth_missing_claim"),
        ("/kubernetes.io/pod", json!("x"), "auth_malformed_token"),
        (
            "/kubernetes.io/serviceaccount/name",
            json!("other"),
            "auth_not_node_agent",
        ),
        (
            "/kubernetes.io/namespace",
            json!("shop"),
            "auth_not_node_agent",
        ),
        (
            "/kubernetes.io/pod/uid",
            json!("uid-ended"),
            "auth_pod_unknown",
        ),
        (
            "/kubernetes.io/pod/uid",
            json!("uid-other"),
            "auth_pod_mismatch",
        ),
    ];
    for (place, value, reason) in cases {
        let mut claims = claims();
        *claims.pointer_mut(place).unwrap() = value.clone();
        let error = tokens.check(&token(&claims)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{place} {value}");
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn who_may_not_speak_for_a_node_is_told_so() {
    let status = AuthError::NotNodeAgent.status();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn no_more_wait_for_their_turn_than_may() {
    let fake = Fake::start(|_| Answer::json(&json!({})).after(REVIEW_LIMIT)).await;
    let tokens = Arc::new(tokens(&fake));
    let other = |number: usize| {
        let mut claims = claims();
        claims["jti"] = json!(number);
        token(&claims)
    };
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..MAX_REVIEWS + MAX_WAITING {
        let (tokens, token) = (tokens.clone(), other(number));
        waiting.spawn(async move { tokens.check(&token).await });
    }
    while tokens.queue.available_permits() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    let error = tokens.check(&other(usize::MAX)).await.unwrap_err();
    assert_eq!(error, AuthError::ReviewUnavailable);
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(waiting.try_join_next().is_none(), "the others wait on");
}
