-- oldest-binary: 1
--
-- Which deaths still need their copy to the dead-letter exchange is noted for each row, and no longer by the time of the
-- last one that was copied: a death that is committed after a later one was never copied. Programs built for earlier
-- versions of the schema run on it unchanged, and miss none either; what they and a newer program copy at the same time
-- may go out twice, under the same id. Deaths that were copied before are not copied again.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

-- Why a table: it is empty but for what is to be done, however many dead rows there are, and no row of the inbox is
-- written once more.
create table waybill.inbox_uncopied (
  inbox_seq bigint primary key,
  consumer text not null,
  died_at timestamptz not null,
  claimed_until timestamptz,
  refused int not null default 0,
  constraint inbox_uncopied_refused_is_not_negative check (refused >= 0)
);

create index inbox_uncopied_order on waybill.inbox_uncopied (consumer, died_at, inbox_seq);

comment on table waybill.inbox_uncopied is
  'Dead rows of the inbox whose copy has not gone to the dead-letter exchange yet. A row of it whose message is dead no more is removed when it is looked at.';
comment on column waybill.inbox_uncopied.inbox_seq is 'The row of the inbox.';
comment on column waybill.inbox_uncopied.consumer is 'Its consumer.';
comment on column waybill.inbox_uncopied.died_at is 'Which of its deaths: a row that is retried may die again.';
comment on column waybill.inbox_uncopied.claimed_until is
  'Until then a program copies it, or it was put off; -infinity: a program for version 14 or before was shown it. Null: it is to be copied.';
comment on column waybill.inbox_uncopied.refused is 'How often RabbitMQ refused this copy, when it was sent alone.';
comment on index waybill.inbox_uncopied_order is 'Deaths of a consumer, in order.';

-- Why a trigger: a row dies in several functions, and by hand. It runs in the transaction of the death.
create function waybill.note_death() returns trigger
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  insert into waybill.inbox_uncopied (inbox_seq, consumer, died_at)
  values (new.seq, new.consumer, new.processed_at)
  on conflict on constraint inbox_uncopied_pkey do update
  set consumer = excluded.consumer, died_at = excluded.died_at, claimed_until = null, refused = 0;
  return null;
end
$$;

comment on function waybill.note_death() is 'Of the inbox: notes that the copy of a death is still to go out.';

create trigger inbox_dead_on_arrival after insert on waybill.inbox
for each row when (new.status = 'dead') execute function waybill.note_death();

create trigger inbox_died after update of status on waybill.inbox
for each row when (new.status = 'dead' and old.status <> 'dead') execute function waybill.note_death();

-- The triggers have kept writers out since: nothing dies between the two.
insert into waybill.inbox_uncopied (inbox_seq, consumer, died_at)
select i.seq, i.consumer, i.processed_at
from waybill.consumer c
join waybill.inbox i on i.consumer = c.name and i.status = 'dead'
  and (i.processed_at, i.seq) > (c.copied_died_at, c.copied_seq);

comment on column waybill.consumer.copied_died_at is 'Not used any more: see inbox_uncopied.';
comment on column waybill.consumer.copied_seq is 'Not used any more.';

create function waybill.uncopied_deaths(consumer text, max_rows int) returns bigint[]
language plpgsql
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  most_rounds constant int := 1000;
  moment constant timestamptz := clock_timestamp();
  taken bigint[];
  kept bigint[];
begin
  for round in 1..most_rounds loop
    taken := array(
      select u.inbox_seq from waybill.inbox_uncopied u
      where u.consumer = uncopied_deaths.consumer and (u.claimed_until is null or u.claimed_until <= moment)
        -- The breaker of a program may open a moment later and give the attempt back.
        and not (u.died_at > moment - interval '30 seconds' and exists (
          select from waybill.inbox i
          where i.seq = u.inbox_seq and i.status = 'dead' and i.dead_reason in ('attempts', 'age')
            and i.processed_at > moment - interval '30 seconds'
            and 'broken' = (
              select a.verdict from waybill.inbox_attempt a where a.inbox_seq = i.seq order by a.number desc limit 1)))
      order by u.consumer, u.died_at, u.inbox_seq limit max_rows for update skip locked
    );
    -- Why a statement of its own: with the lock, no death of these rows can be noted any more that this one does not see.
    kept := array(
      select i.seq from waybill.inbox i where i.seq = any (taken) and i.status = 'dead' and i.body is not null);
    delete from waybill.inbox_uncopied u where u.inbox_seq = any (taken) and u.inbox_seq <> all (kept);
    if cardinality(kept) > 0 or cardinality(taken) < max_rows then
      return kept;
    end if;
  end loop;
  return kept;
end
$$;

comment on function waybill.uncopied_deaths(text, int) is
  'Locks dead rows whose copy is to go out, the oldest deaths first, and removes from the list those that are dead no more, or whose body is gone; not those that died of a broken handler within the last 30 seconds: a breaker may give them back.';

create function waybill.inbox_deaths_claim(consumer text, max_rows int, max_bytes bigint, lease interval)
returns table (seq bigint, died_at timestamptz, refused int)
language plpgsql security definer rows 100
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  settings constant waybill.consumer := waybill.consumer_settings(inbox_deaths_claim.consumer);
  taken bigint[];
begin
  perform waybill.check_claim(max_rows, lease);
  taken := waybill.uncopied_deaths(settings.name, max_rows);
  return query
  with measured as (
    select u.inbox_seq,
      sum(octet_length(i.body) + octet_length(i.headers::text)) over (order by u.died_at, u.inbox_seq) as bytes,
      row_number() over (order by u.died_at, u.inbox_seq) as place
    from waybill.inbox_uncopied u join waybill.inbox i on i.seq = u.inbox_seq
    where u.inbox_seq = any (taken)
  )
  update waybill.inbox_uncopied u set claimed_until = clock_timestamp() + inbox_deaths_claim.lease
  from measured m
  where u.inbox_seq = m.inbox_seq and (m.place = 1 or m.bytes <= max_bytes)
  returning u.inbox_seq, u.died_at, u.refused;
end
$$;

comment on function waybill.inbox_deaths_claim(text, int, bigint, interval) is
  'Dead rows whose copy is to go to the dead-letter exchange, for the caller alone until the lease is over: the oldest deaths first, bodies and headers together at most max_bytes, but at least one row. Say afterwards what became of them, by inbox_deaths_done or inbox_deaths_keep. Errors: WB004, WB005.';

create function waybill.inbox_deaths_done(consumer text, seqs bigint[], died_ats timestamptz[]) returns int
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  copied int;
begin
  -- Why skip locked: whoever has the row notes another death of it.
  delete from waybill.inbox_uncopied u where u.inbox_seq = any (array(
    select e.inbox_seq from waybill.inbox_uncopied e join unnest(seqs, died_ats) as d (seq, died_at)
      on d.seq = e.inbox_seq and d.died_at = e.died_at
    where e.consumer = inbox_deaths_done.consumer for update of e skip locked));
  get diagnostics copied = row_count;
  return copied;
end
$$;

comment on function waybill.inbox_deaths_done(text, bigint[], timestamptz[]) is
  'These deaths are copied, or nobody wants their copies. Another death of the same row is not meant.';

create function waybill.inbox_deaths_keep(
  consumer text, seqs bigint[], died_ats timestamptz[], delay interval default null, was_refused boolean default false
) returns int
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
set enable_seqscan = off
as $$
declare
  kept int;
begin
  update waybill.inbox_uncopied u
  set claimed_until = clock_timestamp() + delay, refused = u.refused + was_refused::int
  where u.inbox_seq = any (array(
    select e.inbox_seq from waybill.inbox_uncopied e join unnest(seqs, died_ats) as d (seq, died_at)
      on d.seq = e.inbox_seq and d.died_at = e.died_at
    where e.consumer = inbox_deaths_keep.consumer for update of e skip locked));
  get diagnostics kept = row_count;
  return kept;
end
$$;

comment on function waybill.inbox_deaths_keep(text, bigint[], timestamptz[], interval, boolean) is
  'These deaths are still to be copied: at once, or after the delay.';

-- For programs of version 14 and before, which ask for these two. They are shown what nobody has claimed, again and again,
-- and what they were not shown does not count as copied.
create or replace function waybill.inbox_deaths(consumer text, max_rows int default 100) returns setof waybill.inbox
language plpgsql volatile security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  shown bigint[];
begin
  shown := waybill.uncopied_deaths(inbox_deaths.consumer, max_rows);
  update waybill.inbox_uncopied u set claimed_until = '-infinity' where u.inbox_seq = any (shown);
  return query
  select i.* from waybill.inbox i where i.seq = any (shown) order by i.processed_at, i.seq;
end
$$;

comment on function waybill.inbox_deaths(text, int) is
  'For programs of version 14 and before: dead rows that were not copied to the dead-letter exchange yet, in order of their deaths.';

create or replace function waybill.inbox_deaths_copied(consumer text, died_at timestamptz, seq bigint) returns void
language sql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
  delete from waybill.inbox_uncopied u
  where u.consumer = inbox_deaths_copied.consumer and u.claimed_until = '-infinity'
    and (u.died_at, u.inbox_seq) <= (inbox_deaths_copied.died_at, inbox_deaths_copied.seq)
$$;

comment on function waybill.inbox_deaths_copied(text, timestamptz, bigint) is
  'For programs of version 14 and before: all deaths that inbox_deaths has shown, up to this one, are copied.';

create or replace function waybill.rename_finish(
  old_name text, new_name text, reason text default null, moved bigint default null
) returns boolean
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
begin
  perform from waybill.consumer c where c.name = old_name and c.renaming_to = new_name for update;
  if not found then
    raise exception 'consumer % is not being renamed to %', to_json(old_name), to_json(new_name) using errcode = '55000';
  elsif exists (select from waybill.inbox i where i.consumer = old_name) then
    return false;
  end if;
  update waybill.consumer c set name = new_name, renaming_to = null where c.name = old_name;
  update waybill.inbox_uncopied u set consumer = new_name where u.consumer = old_name;
  update waybill.consumer_grant g set consumer = new_name where g.consumer = old_name
    and not exists (
      select from waybill.consumer_grant o where o.consumer = new_name and o.role_name = g.role_name);
  delete from waybill.consumer_grant g where g.consumer = old_name;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.rename', new_name, rename_finish.reason,
    jsonb_strip_nulls(jsonb_build_object('from', old_name, 'rows', moved)));
  return true;
end
$$;

create or replace function waybill.forget_consumer(name text, reason text default null, force boolean default false)
returns text
language plpgsql security definer
set search_path = pg_catalog, waybill, pg_temp
as $$
declare
  most_rows constant int := 50000;
  unfinished bigint;
begin
  perform waybill.refuse_half_renamed(forget_consumer.name);
  select coalesce(sum(b.count), 0) into unfinished from waybill.inbox_backlog b where b.consumer = forget_consumer.name;
  if unfinished > 0 and not coalesce(force, false) then
    return 'unfinished rows: ' || unfinished;
  end if;
  delete from waybill.inbox where ctid = any (array(
    select i.ctid from waybill.inbox i where i.consumer = forget_consumer.name limit most_rows));
  if exists (select from waybill.inbox i where i.consumer = forget_consumer.name) then
    return 'more';
  end if;
  delete from waybill.inbox_uncopied u where u.consumer = forget_consumer.name;
  delete from waybill.consumer_grant g where g.consumer = forget_consumer.name;
  delete from waybill.consumer c where c.name = forget_consumer.name;
  if not found then
    return 'unknown';
  end if;
  insert into waybill.action_log (action, target, reason, details)
  values ('consumer.forget', name, forget_consumer.reason, jsonb_build_object('unfinished', unfinished));
  return 'forgotten';
end
$$;

revoke all on function
  waybill.note_death, waybill.uncopied_deaths, waybill.inbox_deaths_claim, waybill.inbox_deaths_done,
  waybill.inbox_deaths_keep from public;

-- Whoever copied deaths goes on before the roles are applied again.
do $$
declare
  copier text;
begin
  for copier in
    select r.rolname from pg_proc p cross join lateral aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee
    where p.oid = 'waybill.inbox_deaths(text, int)'::regprocedure and r.oid <> p.proowner
  loop
    execute format(
      'grant execute on function waybill.inbox_deaths_claim, waybill.inbox_deaths_done, waybill.inbox_deaths_keep to %I',
      copier);
  end loop;
end
$$;

insert into waybill.migration (version, name, oldest_binary) values (15, 'dead_copies', 1);

commit;
