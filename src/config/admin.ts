import { z } from 'zod';
import { duration, filePath, text } from './leaves.js';
import { checkHostNames, checkListen } from './listen.js';

/** The admin HTTP server. */
export const admin = z.strictObject({
  listen: text('127.0.0.1:9809', checkListen, {
    kind: 'text',
    values: 'address:port, off',
    doc: 'Where health, metrics and status are served over HTTP. Port 0 takes a free one, which the log names. A port in use does not stop the relay; it is tried again.',
  }),
  tokenFile: filePath(
    'File with the token that `/status` asks for (`Authorization: Bearer ...`), read at each request. Required where `listen` is not a loopback address.',
  ),
  hostNames: text('', checkHostNames, {
    kind: 'text',
    values: 'names, comma-separated',
    doc: 'Names under which it may be asked, besides `localhost` and IP addresses. Others are refused, so that a web page cannot reach it by DNS.',
  }),
  staleAfter: duration(
    '15s',
    { min: '1s', max: '10m' },
    'A relay that has something to do and gets nowhere for this long is not ready.',
  ),
  collectInterval: duration(
    '15s',
    { min: '1s', max: '10m' },
    'How often the metrics that come from the database are read; a scrape never reads it.',
  ),
});
