//! Tenants and their members: `tenants …`.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::ToSpan;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, Caller, CommandError, Commands, now, parse};
use crate::{
    domain::{EventKind, Invite, Role, Tenant, TenantName, User, UserName, Verb},
    store::{NewEvent, Stored},
};

/// How long an invitation can be used, in hours.
const INVITE_HOURS: i64 = 72;
/// Random bytes in an invitation code.
const CODE_BYTES: usize = 18;

fn hash(code: &str) -> String {
    hex::encode(Sha256::digest(code.as_bytes()))
}

impl Commands {
    /// `tenants …`.
    pub(super) async fn tenants(&self, caller: &Caller, command: parse::Tenants) -> Result<Answer, CommandError> {
        match command {
            parse::Tenants::Create { tenant, owner } => self.create_tenant(caller, tenant, owner).await,
            parse::Tenants::List => self.list_tenants(caller).await,
            parse::Tenants::Members { tenant, set: Some(change), .. } => self.set_role(caller, &tenant, &change).await,
            parse::Tenants::Members { tenant, remove: Some(user), .. } => {
                self.remove_member(caller, &tenant, &user).await
            }
            parse::Tenants::Members { tenant, .. } => self.list_members(caller, &tenant).await,
            parse::Tenants::Invite { tenant, role } => self.invite(caller, &tenant, role).await,
            parse::Tenants::Join { code } => self.join(caller, &code).await,
        }
    }

    async fn create_tenant(
        &self,
        caller: &Caller,
        name: TenantName,
        owner: Option<UserName>,
    ) -> Result<Answer, CommandError> {
        caller.need_operator("create tenants")?;
        let owner = owner.unwrap_or_else(|| caller.user.clone());
        let Some(user) = self.store.get::<User>(&owner).await? else {
            let text = format!("there is no user {owner}; give them a key first: upload-key {owner} < key.pub");
            return Err(CommandError::NotFound(text));
        };
        let tenant = Tenant { name: name.clone(), members: [(owner.clone(), Role::Owner)].into(), created_at: now() };
        let created = self.store.transaction().expect(&user).create(&tenant).commit().await;
        if created.is_err() && self.store.get::<Tenant>(&name).await?.is_some() {
            return Err(CommandError::Conflict(format!("there is a tenant {name} already")));
        }
        created?;
        let event = NewEvent::new(EventKind::TenantCreated, now(), format!("tenant {name} created for {owner}"));
        self.store.record(event.tenant(&name).by(&caller.user)).await?;
        let human = format!("Created tenant {name}, owned by {owner}\nNext: apps create {name}/APP");
        Ok(Answer::new(human, json!(tenant)))
    }

    async fn list_tenants(&self, caller: &Caller) -> Result<Answer, CommandError> {
        let tenants = self.store.list::<Tenant>("").await?;
        let mine: Vec<_> = tenants.into_iter().filter(|tenant| caller.sees(tenant)).collect();
        let row = |tenant: &Stored<Tenant>| {
            let role = tenant.members.get(&caller.user).map_or_else(|| "-".to_owned(), Role::to_string);
            vec![tenant.name.to_string(), role, tenant.members.len().to_string()]
        };
        let value = |tenant: &Stored<Tenant>| json!({"name": tenant.name, "role": tenant.members.get(&caller.user), "members": tenant.members.len()});
        let (rows, values) = (mine.iter().map(row).collect(), mine.iter().map(value).collect());
        Ok(Answer::table(&["tenant", "your role", "members"], rows, values, "You are not a member of any tenant."))
    }

    async fn list_members(&self, caller: &Caller, name: &TenantName) -> Result<Answer, CommandError> {
        let tenant = self.tenant_for(caller, Verb::Read, name).await?;
        let rows = tenant.members.iter().map(|(user, role)| vec![user.to_string(), role.to_string()]).collect();
        let values = tenant.members.iter().map(|(user, role)| json!({"user": user, "role": role})).collect();
        Ok(Answer::table(&["user", "role"], rows, values, "No members."))
    }

    async fn set_role(&self, caller: &Caller, name: &TenantName, change: &str) -> Result<Answer, CommandError> {
        let usage = || CommandError::Usage(format!("{change:?} is not USER=ROLE, as in bob=developer"));
        let (user, role) = change.split_once('=').ok_or_else(usage)?;
        let (user, role): (UserName, Role) = (user.parse()?, role.parse().map_err(CommandError::Usage)?);
        let tenant = self.tenant_for(caller, Verb::ManageMembers, name).await?;
        if !tenant.members.contains_key(&user) {
            return Err(CommandError::NotFound(format!(
                "{user} is not a member of {name}; see `tenants invite {name}`"
            )));
        }
        self.change_members(caller, &tenant, &format!("{user} is now {role} of {name}"), |tenant| {
            tenant.members.insert(user.clone(), role);
        })
        .await
    }

    async fn remove_member(&self, caller: &Caller, name: &TenantName, user: &UserName) -> Result<Answer, CommandError> {
        // Everybody may leave.
        let verb = if *user == caller.user { Verb::Read } else { Verb::ManageMembers };
        let tenant = self.tenant_for(caller, verb, name).await?;
        if !tenant.members.contains_key(user) {
            return Err(CommandError::NotFound(format!("{user} is not a member of {name}")));
        }
        self.change_members(caller, &tenant, &format!("{user} is no longer a member of {name}"), |tenant| {
            tenant.members.remove(user);
        })
        .await
    }

    /// Writes a change of members, unless it would leave the tenant without an owner.
    async fn change_members(
        &self,
        caller: &Caller,
        tenant: &Stored<Tenant>,
        what: &str,
        change: impl FnOnce(&mut Tenant),
    ) -> Result<Answer, CommandError> {
        let mut changed = tenant.record.clone();
        change(&mut changed);
        if !changed.members.values().any(|role| *role == Role::Owner) {
            let text = format!("{} would have no owner; make somebody else owner first", tenant.name);
            return Err(CommandError::Conflict(text));
        }
        self.store.transaction().update(tenant, &changed).commit().await?;
        let event = NewEvent::new(EventKind::MemberChanged, now(), what);
        self.store.record(event.tenant(&tenant.name).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"tenant": tenant.name, "members": changed.members})))
    }

    async fn invite(&self, caller: &Caller, name: &TenantName, role: Role) -> Result<Answer, CommandError> {
        self.tenant_for(caller, Verb::ManageMembers, name).await?;
        self.drop_expired_invites().await?;
        let code = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; CODE_BYTES]>());
        let expires_at = now() + INVITE_HOURS.hours();
        let invite =
            Invite { code_hash: hash(&code), tenant: name.clone(), role, created_by: caller.user.clone(), expires_at };
        self.store.transaction().create(&invite).commit().await?;
        let human = format!(
            "Invitation to join {name} as {role}, good once and for {INVITE_HOURS} hours. Hand it to your colleague, who types:\n\
             tenants join {code}"
        );
        Ok(Answer::new(human, json!({"tenant": name, "role": role, "code": code, "expires_at": expires_at})))
    }

    async fn drop_expired_invites(&self) -> Result<(), CommandError> {
        for invite in self.store.list::<Invite>("").await? {
            if invite.expires_at < now() {
                self.store.transaction().delete(&invite).commit().await?;
            }
        }
        Ok(())
    }

    async fn join(&self, caller: &Caller, code: &str) -> Result<Answer, CommandError> {
        let found = self.store.get::<Invite>(&hash(code)).await?.filter(|invite| invite.expires_at >= now());
        let unknown = || {
            CommandError::NotFound("this invitation does not exist, was used, or has expired; ask for a new one".into())
        };
        let invite = found.ok_or_else(unknown)?;
        let tenant = self.store.get::<Tenant>(&invite.tenant).await?.ok_or_else(unknown)?;
        // An invitation never takes a higher role away.
        let role = tenant.members.get(&caller.user).copied().map_or(invite.role, |role| role.max(invite.role));
        let mut changed = tenant.record.clone();
        changed.members.insert(caller.user.clone(), role);
        self.store.transaction().delete(&invite).update(&tenant, &changed).commit().await?;
        let what = format!("{} joined {} as {role}", caller.user, tenant.name);
        let event = NewEvent::new(EventKind::MemberChanged, now(), what);
        self.store.record(event.tenant(&tenant.name).by(&caller.user)).await?;
        let value: Value = json!({"tenant": tenant.name, "role": role});
        Ok(Answer::new(format!("You are now {role} of {}", tenant.name), value))
    }
}
