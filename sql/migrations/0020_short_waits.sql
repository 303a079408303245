-- oldest-binary: 1
--
-- Attempts that are owed to a row that somebody keeps locked are asked for again and again: each time the connection of
-- the consumer is held up for a second, and no longer for five. Programs built for earlier versions of the schema run on
-- it unchanged.

begin;

set local lock_timeout = '5s';
set local search_path = pg_catalog, pg_temp;

alter function waybill.inbox_give_back(text, bigint[], int[], bigint) set lock_timeout = '1s';

insert into waybill.migration (version, name, oldest_binary) values (20, 'short_waits', 1);

commit;
