-- oldest-binary: 1
--
-- Who acted is the role that had logged in, and behind it, in brackets, the person as the program tells it: one role is
-- often shared by everybody who is on call. The oldest message that waits is found by an index: those that wait are
-- looked at by the time of their next attempt, and past the first thousand the oldest could be missed. Programs built for
-- earlier versions of the schema run on it unchanged. The index reads the inbox once, and whoever writes to it waits for
-- that: seconds for millions of rows.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- The name of the setting does not hold the schema's: it is the program's own.
alter table waybill.action_log alter column actor set default
  session_user || coalesce(' (' || left(nullif(current_setting('waybill_cli.operator', true), ''), 200) || ')', '');

comment on column waybill.action_log.actor is
  'The role that had logged in (session_user), and in brackets who that was by the word of the program: the user of the operating system and the host, or WAYBILL_OPERATOR.';

create index inbox_held_since on waybill.inbox (consumer, status, received_at) where status in ('waiting', 'blocked');

comment on index waybill.inbox_held_since is 'The oldest message of a consumer that waits for its next attempt, or behind another one.';

insert into waybill.migration (version, name, oldest_binary) values (22, 'operators', 1);

commit;
