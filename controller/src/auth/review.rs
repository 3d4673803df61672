//! Tokens that the API server is asked about (TokenReview).
//!
//! The server knows what a signature alone does not: whether the pod, node and account that a
//! token is bound to still exist. Its answers are kept for a little while, so that a node that
//! wants a hundred certificates asks once, and so that a short outage of the API server is not one
//! of the mesh. What our own view of the cluster says about the pod is checked for every request,
//! and before the server is asked: whoever reaches our port can make up a token, and must not be
//! able to keep the reviews busy with it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::{Api, api::PostParams};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tracing::warn;

use super::{
    AuthError, Caller, Callers, MAX_TOKEN_BYTES, ServiceAccount,
    cache::{Cache, TokenHash},
};
use crate::{
    cluster::{CallError, Cluster},
    metrics::Outcome,
    store::Store,
};

/// A good answer is kept for this long, and never beyond the token's end.
const ACCEPTED_FOR: Duration = Duration::from_secs(60);

/// A bad answer is kept for this long.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Good answers that are kept: one for each node of the largest cluster, and then some.
const MAX_ACCEPTED: usize = 20_000;

/// Bad answers that are kept. They have a cache of their own, so that they displace no good one.
const MAX_REFUSED: usize = 4_096;

/// Reviews under way at a time.
const MAX_REVIEWS: usize = 16;

/// A request waits this long for a review, its turn included.
const REVIEW_LIMIT: Duration = Duration::from_secs(8);

/// Requests that may wait for their turn; with more, a request is told at once to come back. An
/// agent asks for a certificate for each of its pods at the same time, and a server that is well
/// answers so many in a fraction of a second.
const MAX_WAITING: usize = 256;

/// Clocks may differ by this much, in seconds.
const LEEWAY: u64 = 10;

/// Longest text of the server's that is passed on, in characters.
const MAX_PROBLEM_CHARS: usize = 200;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Checks tokens by asking the API server.
pub struct ReviewedTokens {
    cluster: Cluster,
    api: Api<TokenReview>,
    audience: String,
    callers: Callers,
    store: Arc<Store>,
    /// Reviews under way or waited for.
    queue: Semaphore,
    /// Reviews under way.
    places: Semaphore,
    answers: Mutex<Answers>,
}

struct Answers {
    accepted: Cache<Bound>,
    refused: Cache<AuthError>,
}

/// What a token is bound to, as the API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    account: ServiceAccount,
    node: String,
    pod_name: String,
    pod_uid: String,
    expires_at: u64,
}

/// What is read of a token before anybody has checked it. It serves to refuse, never to accept.
#[derive(Debug, Deserialize)]
struct Unverified {
    exp: u64,
    #[serde(default)]
    aud: Audience,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Claimed,
}

/// What a token says that it is bound to; empty where it says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Claimed {
    namespace: String,
    serviceaccount: Named,
    pod: Named,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl ReviewedTokens {
    /// Asks about tokens for that audience that say they are of somebody known; the pods that they
    /// are bound to must be in the store.
    pub fn new(cluster: &Cluster, audience: String, callers: Callers, store: Arc<Store>) -> Self {
        Self {
            cluster: cluster.clone(),
            api: Api::all(cluster.client()),
            audience,
            callers,
            store,
            queue: Semaphore::new(MAX_REVIEWS + MAX_WAITING),
            places: Semaphore::new(MAX_REVIEWS),
            answers: Mutex::new(Answers {
                accepted: Cache::new(MAX_ACCEPTED),
                refused: Cache::new(MAX_REFUSED),
            }),
        }
    }

    /// The caller that a token proves.
    pub async fn check(&self, token: &str) -> Result<Caller, AuthError> {
        let claims = unverified(token)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        plausible(&claims, &self.audience, now.unwrap_or_default().as_secs())?;
        self.expected(&claims.kubernetes)?;
        let hash = TokenHash::of(token);
        let bound = match self.answered(hash) {
            Some(answer) => {
                self.count("cached");
                answer?
            }
            None => self.review(token, hash, claims.exp).await?,
        };
        self.live(bound)
    }

    /// Refuses a token whose own words are not those of a node agent's or a proxy's live pod.
    fn expected(&self, claimed: &Claimed) -> Result<(), AuthError> {
        let account = ServiceAccount {
            namespace: claimed.namespace.clone(),
            name: claimed.serviceaccount.name.clone(),
        };
        for (claim, value) in [
            ("kubernetes.io.namespace", &account.namespace),
            ("kubernetes.io.serviceaccount.name", &account.name),
            ("kubernetes.io.pod.uid", &claimed.pod.uid),
        ] {
            if value.is_empty() {
                return Err(AuthError::MissingClaim(claim.to_owned()));
            }
        }
        if !self.callers.knows(&account) {
            return Err(AuthError::NotNodeAgent);
        }
        let index = self.store.index();
        let pod = index
            .live_pod(&claimed.pod.uid)
            .ok_or(AuthError::PodUnknown)?;
        if pod.namespace == account.namespace && pod.service_account == account.name {
            Ok(())
        } else {
            Err(AuthError::PodMismatch("service account"))
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, hash: TokenHash) -> Option<Result<Bound, AuthError>> {
        let now = Instant::now();
        let answers = self.answers();
        let accepted = answers.accepted.get(hash, now).map(Ok);
        accepted.or_else(|| answers.refused.get(hash, now).map(Err))
    }

    async fn review(
        &self,
        token: &str,
        hash: TokenHash,
        expires_at: u64,
    ) -> Result<Bound, AuthError> {
        let Ok(_turn) = self.queue.try_acquire() else {
            self.count("unavailable");
            return Err(AuthError::ReviewUnavailable);
        };
        let asked = async {
            // The semaphore is never closed.
            let _place = self.places.acquire().await;
            // Others with the same token may have been waiting with us.
            if let Some(answer) = self.answered(hash) {
                return (answer, "cached");
            }
            let begun = Instant::now();
            let status = match self.ask(token).await {
                Ok(status) => status,
                Err(error) => {
                    let reason = error.reason();
                    warn!(reason, %error, "token not reviewed");
                    return (Err(AuthError::ReviewUnavailable), "unavailable");
                }
            };
            let answer = bound(status, &self.audience, expires_at);
            self.keep(hash, &answer, begun);
            let result = if answer.is_ok() {
                "accepted"
            } else {
                "refused"
            };
            (answer, result)
        };
        let (answer, result) = match tokio::time::timeout(REVIEW_LIMIT, asked).await {
            Ok(answered) => answered,
            Err(_) => (Err(AuthError::ReviewUnavailable), "unavailable"),
        };
        self.count(result);
        answer
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, CallError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let reviewed = self.api.create(&params, &review);
        let reviewed = self.cluster.call("create", reviewed).await?;
        Ok(reviewed.status.unwrap_or_default())
    }

    fn keep(&self, hash: TokenHash, answer: &Result<Bound, AuthError>, begun: Instant) {
        let mut answers = self.answers();
        match answer {
            Ok(bound) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let left = Duration::from_secs(bound.expires_at)
                    .saturating_sub(now.unwrap_or_default())
                    .min(ACCEPTED_FOR);
                answers.accepted.put(hash, bound.clone(), begun, left);
            }
            Err(error) => {
                answers.refused.put(hash, error.clone(), begun, REFUSED_FOR);
            }
        }
    }

    /// Whether the pod that the token is bound to is there, and is what the token says.
    fn live(&self, bound: Bound) -> Result<Caller, AuthError> {
        let index = self.store.index();
        let pod = index
            .live_pod(&bound.pod_uid)
            .ok_or(AuthError::PodUnknown)?;
        let checks = [
            ("node", pod.node == Some(bound.node.as_str())),
            ("name", pod.name == bound.pod_name),
            ("namespace", pod.namespace == bound.account.namespace),
            ("service account", pod.service_account == bound.account.name),
        ];
        if let Some((what, _)) = checks.into_iter().find(|(_, same)| !same) {
            return Err(AuthError::PodMismatch(what));
        }
        Ok(Caller {
            account: bound.account,
            node: Some(bound.node),
            expires_at: bound.expires_at,
        })
    }

    fn count(&self, result: &'static str) {
        let reviews = &self.cluster.metrics().token_reviews;
        reviews.get_or_create(&Outcome { result }).inc();
    }
}

fn unverified(token: &str) -> Result<Unverified, AuthError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(AuthError::MalformedToken);
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(AuthError::MalformedToken);
    };
    let claims = BASE64URL
        .decode(claims)
        .map_err(|_| AuthError::MalformedToken)?;
    serde_json::from_slice(&claims).map_err(|_| AuthError::MalformedToken)
}

/// Refuses what the API server would refuse, with a better reason and without asking it.
fn plausible(claims: &Unverified, audience: &str, now: u64) -> Result<(), AuthError> {
    if now >= claims.exp.saturating_add(LEEWAY) {
        return Err(AuthError::Expired);
    }
    let for_us = match &claims.aud {
        Audience::One(one) => one == audience,
        Audience::Several(several) => several.iter().any(|one| one == audience),
    };
    if for_us {
        Ok(())
    } else {
        Err(AuthError::WrongAudience)
    }
}

/// Reads the API server's answer.
fn bound(status: TokenReviewStatus, audience: &str, expires_at: u64) -> Result<Bound, AuthError> {
    if status.authenticated != Some(true) {
        let problem = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(AuthError::Rejected(
            problem.chars().take(MAX_PROBLEM_CHARS).collect(),
        ));
    }
    // A server that does not know audiences accepts a token for any of them.
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|one| one == audience) {
        return Err(AuthError::WrongAudience);
    }
    let missing = |what: &str| AuthError::MissingClaim(what.to_owned());
    let user: UserInfo = status.user.ok_or_else(|| missing("user"))?;
    let name = user.username.unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|name| name.split_once(':'))
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| missing("service account"))?;
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(missing(key)),
    };
    Ok(Bound {
        account: ServiceAccount {
            namespace: account.0.to_owned(),
            name: account.1.to_owned(),
        },
        node: one(NODE_NAME)?,
        pod_name: one(POD_NAME)?,
        pod_uid: one(POD_UID)?,
        expires_at,
    })
}

#[cfg(test)]
mod tests;
