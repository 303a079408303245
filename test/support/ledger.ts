/**
 * An application's ledger, and a handler for `sql` consumers that books each message and does as its body asks:
 * `fails` so many attempts, `never`, waits for `order`, `sleep`s seconds.
 */
export const LEDGER = `
  create schema billing;
  create table billing.ledger (n bigint generated always as identity, message_id text not null, key text, attempt int not null, amount numeric);
  create table billing.orders (id text primary key);
  create function billing.on_event(message waybill.inbox_message) returns void language plpgsql as $$
  declare
    p json := waybill.payload(message);
    fails int := coalesce((p ->> 'fails')::int, 0);
  begin
    insert into billing.ledger (message_id, key, attempt, amount)
    values (message.message_id, message.key, message.attempt, (p ->> 'amount')::numeric);
    if message.attempt <= fails then
      raise exception 'not this time';
    end if;
    if p ->> 'never' is not null then
      raise exception 'unknown account' using errcode = 'WB002';
    end if;
    if p ->> 'order' is not null and not exists (select from billing.orders where id = p ->> 'order') then
      raise exception 'order % is not here yet', p ->> 'order' using errcode = 'WB001';
    end if;
    if p ->> 'sleep' is not null then
      perform pg_sleep((p ->> 'sleep')::float);
    end if;
  end $$;
`;
