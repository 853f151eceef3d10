//! Tenants, their members, invitations.

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::{Entity, only_if, view},
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::{TenantPath, parse},
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{
            Invitation, InvitationCode, Member, Members, Membership, NewTenant, RoleChange, RoleName, Tenant,
            TenantChange, TenantRow,
        },
    },
    commands::{
        Ask, Caller, Command,
        nouns::{Switch, Tenants},
    },
    domain::{Role, TenantName},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_tenants, create_tenant))
        .routes(routes!(show_tenant, change_tenant))
        .routes(routes!(list_members))
        .routes(routes!(set_role, remove_member))
        .routes(routes!(create_invitation))
        .routes(routes!(join_tenant))
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Developer => Self::Developer,
            RoleName::Owner => Self::Owner,
        }
    }
}

/// The path of a member.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct MemberPath {
    /// As in `acme`
    #[param(value_type = String)]
    tenant: TenantName,
    /// As in `bob`
    user: String,
}

/// Your tenants; all of them, for an operator
#[utoipa::path(get, path = "/tenants", tag = "tenants", params(PageQuery), responses((status = 200, body = Page<TenantRow>), Refusals))]
async fn list_tenants(
    State(api): State<Api>,
    caller: Caller,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<TenantRow>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Tenants(Tenants::List))).await?;
    Ok(Json(page.page(list, &["name"])?))
}

/// Make a tenant (operators)
#[utoipa::path(post, path = "/tenants", tag = "tenants", request_body = NewTenant, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Tenant), Refusals))]
async fn create_tenant(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<NewTenant>,
) -> Result<Response, Problem> {
    let owner = new.owner.as_deref().map(parse).transpose()?;
    let ask = Ask::new(Command::Tenants(Tenants::Create { tenant: parse(&new.name)?, owner }));
    super::create::<Tenant>(&api, caller, &headers, ("/tenants", &new), Answers::Kept, ask).await
}

/// A tenant, with its members
#[utoipa::path(get, path = "/tenants/{tenant}", tag = "tenants", params(TenantPath),
    responses((status = 200, body = Tenant, headers(("ETag"))), (status = 304, description = "As you have it"), Refusals))]
async fn show_tenant(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(TenantPath { tenant }): Names<TenantPath>,
) -> Result<Entity<Tenant>, Problem> {
    Entity::new(api.ask(caller, Ask::new(Command::Tenants(Tenants::Info { tenant }))).await?, &headers)
}

/// Change how a tenant takes pushes (owners)
#[utoipa::path(patch, path = "/tenants/{tenant}", tag = "tenants", params(TenantPath, ("If-Match" = Option<String>, Header)), request_body = TenantChange,
    responses((status = 200, body = TenantChanged), Refusals))]
async fn change_tenant(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(TenantPath { tenant }): Names<TenantPath>,
    Body(change): Body<TenantChange>,
) -> Result<Json<TenantChanged>, Problem> {
    let switch = if change.require_manifest { Switch::On } else { Switch::Off };
    let ask = Ask::new(Command::Tenants(Tenants::RequireManifest { tenant, switch })).only_if(only_if(&headers)?);
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// How a tenant takes pushes.
#[derive(Debug, serde::Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct TenantChanged {
    tenant: String,
    require_manifest: bool,
}

/// Members of a tenant
#[utoipa::path(get, path = "/tenants/{tenant}/members", tag = "tenants", params(TenantPath),
    responses((status = 200, body = Vec<Member>, headers(("ETag"))), (status = 304, description = "As you have it"), Refusals))]
async fn list_members(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(TenantPath { tenant }): Names<TenantPath>,
) -> Result<Entity<Vec<Member>>, Problem> {
    let command = Tenants::Members { tenant, set: None, remove: None };
    Entity::new(api.ask(caller, Ask::new(Command::Tenants(command))).await?, &headers)
}

/// Give a member another role (owners)
#[utoipa::path(put, path = "/tenants/{tenant}/members/{user}", tag = "tenants", params(MemberPath, ("If-Match" = Option<String>, Header)), request_body = RoleChange,
    responses((status = 200, body = Members), Refusals))]
async fn set_role(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(MemberPath { tenant, user }): Names<MemberPath>,
    Body(change): Body<RoleChange>,
) -> Result<Json<Members>, Problem> {
    let set = Some(format!("{user}={}", Role::from(change.role)));
    let ask = Ask::new(Command::Tenants(Tenants::Members { tenant, set, remove: None })).only_if(only_if(&headers)?);
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Remove a member (owners), or leave
#[utoipa::path(delete, path = "/tenants/{tenant}/members/{user}", tag = "tenants", params(MemberPath, ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = Members), Refusals))]
async fn remove_member(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(MemberPath { tenant, user }): Names<MemberPath>,
) -> Result<Json<Members>, Problem> {
    let command = Tenants::Members { tenant, set: None, remove: Some(parse(&user)?) };
    let ask = Ask::new(Command::Tenants(command)).only_if(only_if(&headers)?);
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Make an invitation code to hand to a colleague (owners)
#[utoipa::path(post, path = "/tenants/{tenant}/invitations", tag = "tenants", params(TenantPath, ("Idempotency-Key" = Option<String>, Header)),
    request_body = RoleChange, responses((status = 201, body = Invitation), Refusals))]
async fn create_invitation(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(TenantPath { tenant }): Names<TenantPath>,
    Body(new): Body<RoleChange>,
) -> Result<Response, Problem> {
    let path = format!("/tenants/{tenant}/invitations");
    let ask = Ask::new(Command::Tenants(Tenants::Invite { tenant, role: new.role.into() }));
    super::create::<Invitation>(&api, caller, &headers, (&path, &new), Answers::Secret, ask).await
}

/// Join a tenant with an invitation code
#[utoipa::path(post, path = "/memberships", tag = "tenants", request_body = InvitationCode, params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Membership), Refusals))]
async fn join_tenant(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(new): Body<InvitationCode>,
) -> Result<Response, Problem> {
    let ask = Ask::new(Command::Tenants(Tenants::Join { code: new.code.clone() }));
    super::create::<Membership>(&api, caller, &headers, ("/memberships", &new), Answers::Kept, ask).await
}
