import type { CommitSetting, Rights } from '../postgres/inspect-rights.js';
import { ok, warn, type Finding } from './doctor-findings.js';

const LIST_TABLES = 3;

/** Whether the daemon's role has more than it uses: what has its password has all of it. Pure. */
export function checkRights({ role, isSuperuser, owner, ownTables }: Rights, schema: string): Finding {
  const id = 'least-privilege';
  const mend =
    'apply the roles as a superuser or the owner (waybill migrate print --roles | psql), give the relay role a password, and put it into database.url; keep the role of now for waybill migrate';
  if (isSuperuser) {
    const what = `role ${role} is a superuser: functions of handlers run as it, and who gets its password has the server`;
    return warn(id, what, mend);
  }
  if (ownTables.length > 0 || owner !== null) {
    const named = ownTables.slice(0, LIST_TABLES).join(', ');
    const more = ownTables.length > LIST_TABLES ? ` and ${ownTables.length - LIST_TABLES} more` : '';
    const tables = ownTables.length > 0 ? `tables of schema ${schema} (${named}${more})` : `schema ${schema}`;
    const as = owner === null || owner === role ? '' : `, as a member of ${owner}`;
    const leave = owner === null || owner === role ? mend : `${mend}; or: revoke "${owner}" from "${role}";`;
    return warn(id, `role ${role} owns ${tables}${as}: it may drop and change them, which a daemon never does`, leave);
  }
  return ok(id, `role ${role} is no superuser, and owns nothing of schema ${schema}`);
}

/** F24: commits that are answered before they are safe. `hasStandbys`: synchronous_standby_names is set. Pure. */
export function checkCommits(settings: readonly CommitSetting[], hasStandbys: boolean): Finding[] {
  const id = 'synchronous-commit';
  const findings = settings.flatMap(({ value, where, reset }): Finding[] => {
    const said = `synchronous_commit is ${value} of ${where}`;
    if (value === 'off') {
      const what = `${said}: after a crash of the server, rows are gone that were answered as committed a moment before, with their messages`;
      return [warn(id, what, reset)];
    }
    if (value !== 'local' || !hasStandbys) return [];
    const what = `${said}: commits do not wait for the synchronous standby; after its promotion they are gone, and messages may be out whose rows it never had`;
    return [warn(id, what, reset)];
  });
  if (findings.length > 0) return findings;
  return [ok(id, 'commits are answered once they are on disk')];
}
