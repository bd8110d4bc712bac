//! Who asks: where the credentials come from, and whose they are.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use std::time::{Duration, SystemTime};

use aws_credential_types::credential_feature::AwsCredentialFeature as Feature;
use aws_credential_types::provider::ProvideCredentials as _;

use super::{Aws, Fault, FaultKind};
use crate::error::chain;

/// The chain of providers ends at an address that drops packets where there is no instance profile.
const PATIENCE: Duration = Duration::from_secs(8);

/// Credentials that were found; the secret stays where it is.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Where they come from, for a person.
    pub source: String,
    /// The key's id, its middle left out.
    pub key_id: String,
    /// When they end, if they do.
    pub expires_at: Option<SystemTime>,
}

impl Aws {
    /// The credentials, from the first provider that has some; that can take seconds.
    pub async fn credentials(&self) -> Result<Credentials, Fault> {
        let no_credentials = |detail: &str| {
            // The chain tells a line for each provider.
            let tried: Vec<_> = detail.lines().map(str::trim).collect();
            let tried = tried
                .join("; ")
                .replace("the credential provider was not enabled: ", "")
                .replace("no credentials found in chain. Attempted:; ", "");
            Fault { kind: FaultKind::Credentials, message: format!("no AWS credentials ({tried})") }
        };
        let Some(provider) = self.config.credentials_provider() else {
            return Err(no_credentials("no provider"));
        };
        let found = match tokio::time::timeout(PATIENCE, provider.provide_credentials()).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(no_credentials(&chain(&error))),
            Err(_) => return Err(no_credentials("the providers did not answer within 8 s")),
        };
        let features = found.get_property::<Vec<Feature>>().map(Vec::as_slice).unwrap_or_default();
        let sources: Vec<_> = features.iter().filter_map(source).collect();
        Ok(Credentials {
            source: if sources.is_empty() { "the configuration".to_owned() } else { sources.join(", ") },
            key_id: abridged(found.access_key_id()),
            expires_at: found.expiry(),
        })
    }

    /// The ARN of the user or role; needs no permission.
    pub async fn identity(&self) -> Result<String, Fault> {
        let client = aws_sdk_sts::Client::new(&self.config);
        let answer = client.get_caller_identity().send().await.map_err(|error| Fault::of(&error))?;
        answer
            .arn
            .ok_or_else(|| Fault { kind: FaultKind::Unavailable, message: "an answer without an identity".to_owned() })
    }
}

/// Enough to know a key by, beside the list that its owner sees; what is shorter is no key of AWS.
fn abridged(id: &str) -> String {
    match (id.get(..4), id.len().checked_sub(4).and_then(|at| id.get(at..))) {
        (Some(first), Some(last)) if id.len() >= 16 => format!("{first}…{last}"),
        _ => id.to_owned(),
    }
}

fn source(feature: &Feature) -> Option<&'static str> {
    Some(match feature {
        Feature::CredentialsEnvVars => "AWS_ACCESS_KEY_ID in the environment",
        Feature::CredentialsEnvVarsStsWebIdToken | Feature::CredentialsProfileStsWebIdToken => {
            "a web identity token (IRSA)"
        }
        Feature::CredentialsStsAssumeRole => "an assumed role",
        Feature::CredentialsStsAssumeRoleWebId => "a role for a web identity",
        Feature::CredentialsProfile | Feature::CredentialsProfileSourceProfile => "a profile (~/.aws)",
        Feature::CredentialsProfileNamedProvider => "a profile that names a provider",
        Feature::CredentialsProfileSso | Feature::CredentialsSso => "single sign-on",
        Feature::CredentialsProfileProcess | Feature::CredentialsProcess => "a credential process",
        Feature::CredentialsHttp => "the container's endpoint (ECS, EKS Pod Identity)",
        Feature::CredentialsImds => "the instance's role (IMDS)",
        Feature::CredentialsProfileLogin | Feature::CredentialsLogin => "aws login",
        _ => return None,
    })
}
