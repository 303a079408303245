-- oldest-binary: 1
--
-- A handler in the database that finds a row of the application locked by somebody else (lock_timeout, or NOWAIT) has not
-- failed: its message waits like one whose data is not there yet, spends no attempt, and what is left of its batch waits
-- for locks no more than a moment, so that a transaction which somebody left open costs its own messages their time, not
-- all others. And whatever a handler sets, the transaction that it runs in is on the disk before its messages are
-- acknowledged. Programs built for earlier versions of the schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

create or replace function waybill.call_handler(
  calling text, message waybill.inbox_message, deferred text, out verdict text, out error text, out result text
)
language plpgsql
as $$
declare
  durable constant pg_catalog.text := pg_catalog.current_setting('synchronous_commit');
  -- Whoever has a lock that one message needs may have others that the batch needs: locks are waited for once, not sixty
  -- times.
  is_hasty constant boolean := pg_catalog.current_setting('waybill_message.found_lock', true) operator(pg_catalog.=) 'yes';
  usual_timeout constant pg_catalog.text := pg_catalog.current_setting('lock_timeout');
begin
  perform waybill.set_handling(message);
  if is_hasty then
    perform pg_catalog.set_config('lock_timeout', '20ms', true);
  end if;
  begin
    execute calling into result using message;
    -- A broken deferred constraint is this message's, not that of the whole batch at its commit.
    set constraints all immediate;
    verdict := 'done';
    result := pg_catalog.left(result, 4000);
    if result operator(pg_catalog.=) '' then
      result := null;
    end if;
  exception
    when serialization_failure or deadlock_detected or read_only_sql_transaction then
      raise;
    -- Why assert_failure by name: "others" leaves it out. It leaves query_canceled out too, and that is wanted.
    when assert_failure or others then
      -- The server is short of something: no message's fault.
      if sqlstate operator(pg_catalog.~) '^(53|57|58)' then
        raise;
      end if;
      error := pg_catalog.concat(sqlstate, ': ', sqlerrm);
      result := null;
      verdict := case
        when sqlstate operator(pg_catalog.=) 'WB001' or sqlstate operator(pg_catalog.=) '55P03' then 'not-yet'
        when sqlstate operator(pg_catalog.=) 'WB002' then 'never'
        when sqlstate operator(pg_catalog.~) '^(42|3F)' then 'broken'
        else 'retry'
      end;
      if sqlstate operator(pg_catalog.=) '55P03' then
        perform pg_catalog.set_config('waybill_message.found_lock', 'yes', true);
      end if;
  end;
  -- Also what the handler has set, lest Waybill's own locks, and other messages, wait by it.
  if pg_catalog.current_setting('lock_timeout') operator(pg_catalog.<>) usual_timeout then
    perform pg_catalog.set_config('lock_timeout', usual_timeout, true);
  end if;
  -- What is committed is acknowledged to the broker, so it must be on the disk. Also where a call before this one has set
  -- the session.
  if durable operator(pg_catalog.=) 'off' then
    perform pg_catalog.set_config('synchronous_commit', 'on', true);
  elsif pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.<>) durable then
    perform pg_catalog.set_config('synchronous_commit', durable, true);
  end if;
  if deferred is not null then
    execute pg_catalog.concat('set constraints ', deferred, ' deferred');
  end if;
end
$$;

comment on function waybill.call_handler(text, waybill.inbox_message, text) is
  'Calls an sql handler in a subtransaction, its deferred constraints checked, and says done, retry, not-yet (WB001; 55P03: a lock that somebody else has; what is called after it in the transaction waits for locks 20 ms only), never (WB002) or broken (class 42: something that it uses is missing or not allowed). Deadlocks, serialization failures, a cancelled statement and a server in need end the whole transaction. synchronous_commit is as before, and never off.';

insert into waybill.migration (version, name, oldest_binary) values (19, 'locked_by_others', 1);

commit;
