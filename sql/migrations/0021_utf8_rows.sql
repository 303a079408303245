-- oldest-binary: 1
--
-- Where the database is not encoded in UTF8, a row may hold bytes that cannot be sent as text: the server then fails when
-- it decodes the row, for whoever reads the log, again and again, and no later row ever goes out. There such a row is
-- refused when it is written. Rows that are there already are not looked at. Programs built for earlier versions of the
-- schema run on it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

do $$
begin
  if getdatabaseencoding() <> 'UTF8' then
    -- Why a separator: two halves of a character in two columns are none.
    alter table waybill.outbox add constraint outbox_text_can_be_utf8 check (
      convert_to(
        concat_ws(' ', type, key, payload::text, content_type, content_encoding, headers::text, exchange, routing_key,
          correlation_id, causation_id, reply_to, traceparent, tracestate),
        'UTF8'
      ) is not null
    ) not valid;
    comment on constraint outbox_text_can_be_utf8 on waybill.outbox is
      'What cannot be sent as text would end the decoding of the log for all rows; only in databases that are not encoded in UTF8.';
  end if;
end
$$;

insert into waybill.migration (version, name, oldest_binary) values (21, 'utf8_rows', 1);

commit;
