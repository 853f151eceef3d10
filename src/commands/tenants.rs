//! Tenants and their members: `tenants …`.

use jiff::ToSpan;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, Caller, CommandError, Commands, Door, OnlyIf, error::keep_trying, nouns, now};
use crate::{
    domain::{EventKind, Invite, Role, Tenant, TenantName, User, UserName, Verb},
    store::{NewEvent, StoreError, Stored},
};

/// How long an invitation can be used, in hours.
const INVITE_HOURS: i64 = 72;
/// Random bytes in a code, 128 bits. Written in hex: base64 may begin with `-`, which a command line takes for an option.
const CODE_BYTES: usize = 16;

fn hash(code: &str) -> String {
    hex::encode(Sha256::digest(code.as_bytes()))
}

impl Commands {
    /// `tenants …`.
    pub(super) async fn tenants(
        &self,
        caller: &Caller,
        command: nouns::Tenants,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        match command {
            nouns::Tenants::Create { tenant, owner } => self.create_tenant(caller, tenant, owner).await,
            nouns::Tenants::List => self.list_tenants(caller).await,
            nouns::Tenants::Info { tenant } => self.tenant_info(caller, &tenant).await,
            nouns::Tenants::Members { tenant, set: Some(change), .. } => {
                self.set_role(caller, &tenant, &change, only_if).await
            }
            nouns::Tenants::Members { tenant, remove: Some(user), .. } => {
                self.remove_member(caller, &tenant, &user, only_if).await
            }
            nouns::Tenants::Members { tenant, .. } => self.list_members(caller, &tenant).await,
            nouns::Tenants::Invite { tenant, role } => self.invite(caller, &tenant, role).await,
            nouns::Tenants::Join { code } => self.join(caller, &code).await,
            nouns::Tenants::RequireManifest { tenant, switch } => {
                self.require_manifest(caller, &tenant, switch == nouns::Switch::On, only_if).await
            }
        }
    }

    async fn create_tenant(
        &self,
        caller: &Caller,
        name: TenantName,
        owner: Option<UserName>,
    ) -> Result<Answer, CommandError> {
        self.need_operator(caller, "create tenants")?;
        let owner = match owner {
            Some(owner) => owner,
            None if caller.door == Door::Host => {
                return Err(CommandError::Usage("name the owner with --owner USER: the host itself is no user".into()));
            }
            None => caller.user.clone(),
        };
        let tenant = keep_trying(|| self.try_create_tenant(&name, &owner)).await?;
        let event = NewEvent::new(EventKind::TenantCreated, now(), format!("tenant {name} created for {owner}"));
        let event = event.data("owner", owner.as_str());
        self.store.record(event.tenant(&name).by(&caller.user)).await?;
        let human = format!("Created tenant {name}, owned by {owner}\nNext: apps create {name}/APP");
        Ok(Answer::new(human, json!(tenant)))
    }

    async fn try_create_tenant(&self, name: &TenantName, owner: &UserName) -> Result<Tenant, CommandError> {
        let Some(user) = self.store.get::<User>(owner).await? else {
            let text = format!("there is no user {owner}; give them a key first: upload-key {owner} < key.pub");
            return Err(CommandError::NotFound(text));
        };
        if self.store.get::<Tenant>(name).await?.is_some() {
            return Err(CommandError::Conflict(format!("there is a tenant {name} already")));
        }
        let members = [(owner.clone(), Role::Owner)].into();
        let tenant = Tenant { name: name.clone(), members, created_at: now(), require_manifest: false };
        self.store.transaction().expect(&user).create(&tenant).commit().await?;
        Ok(tenant)
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

    async fn tenant_info(&self, caller: &Caller, name: &TenantName) -> Result<Answer, CommandError> {
        let tenant = self.tenant_for(caller, Verb::Read, name).await?;
        let members: Vec<String> = tenant.members.iter().map(|(user, role)| format!("{user} ({role})")).collect();
        let manifest = if tenant.require_manifest { "needed" } else { "not needed" };
        let human = format!(
            "{name}, since {}\nMembers: {}\nberth.yaml in pushes: {manifest}",
            tenant.created_at.strftime("%Y-%m-%d"),
            members.join(", ")
        );
        Ok(Answer::new(human, json!(tenant.record)))
    }

    async fn list_members(&self, caller: &Caller, name: &TenantName) -> Result<Answer, CommandError> {
        let tenant = self.tenant_for(caller, Verb::Read, name).await?;
        let rows = tenant.members.iter().map(|(user, role)| vec![user.to_string(), role.to_string()]).collect();
        Ok(Answer::table(&["user", "role"], rows, member_values(&tenant), "No members."))
    }

    async fn set_role(
        &self,
        caller: &Caller,
        name: &TenantName,
        change: &str,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        let usage = || CommandError::Usage(format!("{change:?} is not USER=ROLE, as in bob=developer"));
        let (user, role) = change.split_once('=').ok_or_else(usage)?;
        let (user, role): (UserName, Role) = (user.parse()?, role.parse().map_err(CommandError::Usage)?);
        self.tenant_for(caller, Verb::ManageMembers, name).await?;
        let set = |tenant: &mut Tenant| match checked(tenant, only_if)?.members.get_mut(&user) {
            Some(before) => {
                *before = role;
                Ok(())
            }
            None => Err(not_a_member(&user, tenant)),
        };
        self.change_members(caller, name, &user, &format!("{user} is now {role} of {name}"), set).await
    }

    async fn remove_member(
        &self,
        caller: &Caller,
        name: &TenantName,
        user: &UserName,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        // Everybody may leave; but a token that only looks on takes nobody out.
        let leaves = *user == caller.user && caller.scope_allows(Verb::ManageMembers);
        let verb = if leaves { Verb::Read } else { Verb::ManageMembers };
        self.tenant_for(caller, verb, name).await?;
        let remove = |tenant: &mut Tenant| match checked(tenant, only_if)?.members.remove(user) {
            Some(_) => Ok(()),
            None => Err(not_a_member(user, tenant)),
        };
        self.change_members(caller, name, user, &format!("{user} is no longer a member of {name}"), remove).await
    }

    /// Writes a change of a member, unless it would leave the tenant without an owner.
    async fn change_members(
        &self,
        caller: &Caller,
        name: &TenantName,
        user: &UserName,
        what: &str,
        change: impl Fn(&mut Tenant) -> Result<(), CommandError> + Send + Sync,
    ) -> Result<Answer, CommandError> {
        let changed = keep_trying(|| self.try_change_members(name, user, &change)).await?;
        let role = changed.members.get(user).map(Role::to_string);
        let event = NewEvent::new(EventKind::MemberChanged, now(), what).data("user", user.as_str()).data("role", role);
        self.store.record(event.tenant(name).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"tenant": name, "members": changed.members})))
    }

    /// Invitations go with the right to make them.
    async fn try_change_members(
        &self,
        name: &TenantName,
        user: &UserName,
        change: &(impl Fn(&mut Tenant) -> Result<(), CommandError> + Sync),
    ) -> Result<Tenant, CommandError> {
        let stored = self.store.need::<Tenant>(name).await?;
        let mut tenant = stored.record.clone();
        change(&mut tenant)?;
        if !tenant.members.values().any(|role| *role == Role::Owner) {
            return Err(CommandError::Conflict(format!("{name} would have no owner; make somebody else owner first")));
        }
        let mut transaction = self.store.transaction().update(&stored, &tenant);
        if !manages(&tenant, user) {
            let invites = self.store.list::<Invite>("").await?;
            for invite in invites.iter().filter(|invite| invite.tenant == *name && invite.created_by == *user) {
                transaction = transaction.delete(invite);
            }
        }
        transaction.commit().await?;
        Ok(tenant)
    }

    async fn require_manifest(
        &self,
        caller: &Caller,
        name: &TenantName,
        on: bool,
        only_if: &OnlyIf,
    ) -> Result<Answer, CommandError> {
        self.tenant_for(caller, Verb::ManageMembers, name).await?;
        let change = |tenant: &mut Tenant| {
            only_if.check(&json!(tenant))?;
            tenant.require_manifest = on;
            Ok::<(), CommandError>(())
        };
        self.store.modify(name, change).await?;
        let what = match on {
            true => format!("pushes to {name} need a berth.yaml"),
            false => format!("pushes to {name} are taken without a berth.yaml"),
        };
        let event = NewEvent::new(EventKind::TenantChanged, now(), &what).data("require_manifest", on);
        self.store.record(event.tenant(name).by(&caller.user)).await?;
        Ok(Answer::new(what, json!({"tenant": name, "require_manifest": on})))
    }

    async fn invite(&self, caller: &Caller, name: &TenantName, role: Role) -> Result<Answer, CommandError> {
        self.tenant_for(caller, Verb::ManageMembers, name).await?;
        self.drop_expired_invites().await?;
        let code = hex::encode(rand::random::<[u8; CODE_BYTES]>());
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
                match self.store.transaction().delete(&invite).commit().await {
                    // Somebody else has deleted it.
                    Ok(_) | Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    async fn join(&self, caller: &Caller, code: &str) -> Result<Answer, CommandError> {
        caller.need_account("join tenants")?;
        let (name, role) = keep_trying(|| self.try_join(&caller.user, code)).await?;
        let event = NewEvent::new(EventKind::MemberChanged, now(), format!("{} joined {name} as {role}", caller.user));
        let event = event.data("user", caller.user.as_str()).data("role", role.to_string());
        self.store.record(event.tenant(&name).by(&caller.user)).await?;
        Ok(Answer::new(format!("You are now {role} of {name}"), json!({"tenant": name, "role": role})))
    }

    async fn try_join(&self, user: &UserName, code: &str) -> Result<(TenantName, Role), CommandError> {
        let found = self.store.get::<Invite>(&hash(code)).await?.filter(|invite| invite.expires_at >= now());
        let unknown = || {
            CommandError::NotFound(
                "this invitation does not exist, was used or withdrawn, or has expired; ask for a new one".into(),
            )
        };
        let invite = found.ok_or_else(unknown)?;
        let tenant = self.store.get::<Tenant>(&invite.tenant).await?.ok_or_else(unknown)?;
        if !self.may_have_invited(&tenant, &invite.created_by).await? {
            return Err(unknown());
        }
        // An invitation never takes a higher role away.
        let role = tenant.members.get(user).copied().map_or(invite.role, |role| role.max(invite.role));
        let mut changed = tenant.record.clone();
        changed.members.insert(user.clone(), role);
        self.store.transaction().delete(&invite).update(&tenant, &changed).commit().await?;
        Ok((changed.name, role))
    }

    /// Whether who made an invitation could still make it.
    async fn may_have_invited(&self, tenant: &Tenant, maker: &UserName) -> Result<bool, CommandError> {
        if manages(tenant, maker) {
            return Ok(true);
        }
        // The host is no user, and operates.
        Ok(self.store.get::<User>(maker).await?.is_none_or(|user| user.operator))
    }
}

/// Whether the user is a member who may invite others.
fn manages(tenant: &Tenant, user: &UserName) -> bool {
    tenant.members.get(user).is_some_and(|role| role.may(Verb::ManageMembers))
}

/// What is listed of the members.
fn member_values(tenant: &Tenant) -> Vec<Value> {
    tenant.members.iter().map(|(user, role)| json!({"user": user, "role": role})).collect()
}

/// The tenant, if its members are those that the caller has seen.
fn checked<'t>(tenant: &'t mut Tenant, only_if: &OnlyIf) -> Result<&'t mut Tenant, CommandError> {
    only_if.check(&Value::Array(member_values(tenant)))?;
    Ok(tenant)
}

fn not_a_member(user: &UserName, tenant: &Tenant) -> CommandError {
    let name = &tenant.name;
    CommandError::NotFound(format!("{user} is not a member of {name}; see `tenants members {name}`"))
}
