//! The records and their keys. Numbers are zero-padded in keys, so that key order is number order.

use serde::{Serialize, de::DeserializeOwned};

use crate::domain::{
    ApiToken, App, AppRef, Build, BuildNumber, CrashLoops, CronMark, CronRun, DELIVERIES_KEPT, Deployment, DomainClaim,
    Drain, DrainMark, EnvRef, Environment, Event, Invite, JobName, OnceRequest, PublicKey, Release, ReleaseVersion,
    SignInLink, Tenant, TenantName, Tombstone, User, UserName, UserTokens, Webhook, WebhookDelivery, WebhookId,
    WebhookMark,
};

/// A type that the store keeps, and how its key is made.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// What identifies one.
    type Id: ?Sized;
    /// First part of the key.
    const KIND: &'static str;
    /// The key of the record with this id, without the kind.
    fn id_key(id: &Self::Id) -> String;
    /// The key of this record, without the kind.
    fn own_key(&self) -> String;
}

fn numbered(env: &EnvRef, number: u64) -> String {
    format!("{env}/{number:010}")
}

impl Record for User {
    type Id = UserName;
    const KIND: &'static str = "user";
    fn id_key(id: &UserName) -> String {
        id.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.name)
    }
}

impl Record for PublicKey {
    type Id = str;
    const KIND: &'static str = "key";
    fn id_key(fingerprint: &str) -> String {
        fingerprint.to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.fingerprint)
    }
}

impl Record for ApiToken {
    type Id = str;
    const KIND: &'static str = "token";
    fn id_key(secret_hash: &str) -> String {
        secret_hash.to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.secret_hash)
    }
}

impl Record for UserTokens {
    type Id = UserName;
    const KIND: &'static str = "user-tokens";
    fn id_key(user: &UserName) -> String {
        user.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.user)
    }
}

impl Record for Tenant {
    type Id = TenantName;
    const KIND: &'static str = "tenant";
    fn id_key(id: &TenantName) -> String {
        id.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.name)
    }
}

impl Record for Invite {
    type Id = str;
    const KIND: &'static str = "invite";
    fn id_key(code_hash: &str) -> String {
        code_hash.to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.code_hash)
    }
}

impl Record for SignInLink {
    type Id = str;
    const KIND: &'static str = "sign-in";
    fn id_key(secret_hash: &str) -> String {
        secret_hash.to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.secret_hash)
    }
}

impl Record for App {
    type Id = AppRef;
    const KIND: &'static str = "app";
    fn id_key(id: &AppRef) -> String {
        id.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.name)
    }
}

impl Record for Environment {
    type Id = EnvRef;
    const KIND: &'static str = "env";
    fn id_key(id: &EnvRef) -> String {
        id.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.name)
    }
}

impl Record for Tombstone {
    type Id = EnvRef;
    const KIND: &'static str = "tombstone";
    fn id_key(id: &EnvRef) -> String {
        id.to_string()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.env)
    }
}

impl Record for DomainClaim {
    type Id = str;
    const KIND: &'static str = "domain";
    fn id_key(host: &str) -> String {
        host.to_owned()
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.host)
    }
}

impl Record for Build {
    type Id = (EnvRef, BuildNumber);
    const KIND: &'static str = "build";
    fn id_key((env, number): &Self::Id) -> String {
        numbered(env, number.0)
    }
    fn own_key(&self) -> String {
        numbered(&self.env, self.number.0)
    }
}

impl Record for Release {
    type Id = (EnvRef, ReleaseVersion);
    const KIND: &'static str = "release";
    fn id_key((env, version): &Self::Id) -> String {
        numbered(env, version.0)
    }
    fn own_key(&self) -> String {
        numbered(&self.env, self.version.0)
    }
}

impl Record for Deployment {
    type Id = (EnvRef, ReleaseVersion);
    const KIND: &'static str = "deployment";
    fn id_key((env, version): &Self::Id) -> String {
        numbered(env, version.0)
    }
    fn own_key(&self) -> String {
        numbered(&self.env, self.to.0)
    }
}

impl Record for CronRun {
    type Id = (EnvRef, JobName, u64);
    const KIND: &'static str = "cron-run";
    fn id_key((env, job, number): &Self::Id) -> String {
        format!("{env}/{job}/{number:010}")
    }
    fn own_key(&self) -> String {
        format!("{}/{}/{:010}", self.env, self.job, self.number)
    }
}

impl Record for CrashLoops {
    type Id = EnvRef;
    const KIND: &'static str = "crash-loops";
    fn id_key(env: &EnvRef) -> String {
        // One of each, found as everything else of an environment is.
        format!("{env}/all")
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.env)
    }
}

impl Record for CronMark {
    type Id = (EnvRef, JobName);
    const KIND: &'static str = "cron-mark";
    fn id_key((env, job): &Self::Id) -> String {
        format!("{env}/{job}")
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.env, self.job)
    }
}

impl Record for Drain {
    type Id = (EnvRef, u64);
    const KIND: &'static str = "drain";
    fn id_key((env, id): &Self::Id) -> String {
        numbered(env, *id)
    }
    fn own_key(&self) -> String {
        numbered(&self.env, self.id)
    }
}

impl Record for DrainMark {
    type Id = (EnvRef, u64);
    const KIND: &'static str = "drain-mark";
    fn id_key((env, id): &Self::Id) -> String {
        numbered(env, *id)
    }
    fn own_key(&self) -> String {
        numbered(&self.env, self.id)
    }
}

impl Record for Webhook {
    type Id = (TenantName, WebhookId);
    const KIND: &'static str = "webhook";
    fn id_key((tenant, id): &Self::Id) -> String {
        format!("{tenant}/{id}")
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.tenant, self.id)
    }
}

impl Record for WebhookMark {
    type Id = (TenantName, WebhookId);
    const KIND: &'static str = "webhook-mark";
    fn id_key((tenant, id): &Self::Id) -> String {
        format!("{tenant}/{id}")
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.tenant, self.id)
    }
}

/// The slot in the ring that a number has.
fn delivery_slot(number: u64) -> u64 {
    number % DELIVERIES_KEPT
}

impl Record for WebhookDelivery {
    type Id = (TenantName, WebhookId, u64);
    const KIND: &'static str = "webhook-delivery";
    /// Of the number; one that is [`DELIVERIES_KEPT`] higher takes its place.
    fn id_key((tenant, id, number): &Self::Id) -> String {
        format!("{tenant}/{id}/{:03}", delivery_slot(*number))
    }
    fn own_key(&self) -> String {
        format!("{}/{}/{:03}", self.tenant, self.id, delivery_slot(self.number))
    }
}

impl Record for Event {
    type Id = u64;
    const KIND: &'static str = "event";
    fn id_key(id: &u64) -> String {
        format!("{id:012}")
    }
    fn own_key(&self) -> String {
        Self::id_key(&self.id)
    }
}

impl Record for OnceRequest {
    type Id = (UserName, String);
    const KIND: &'static str = "once";
    fn id_key((user, key_hash): &Self::Id) -> String {
        format!("{user}/{key_hash}")
    }
    fn own_key(&self) -> String {
        format!("{}/{}", self.user, self.key_hash)
    }
}
