import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { httpHandler } from '../../../src/app/http-handler.js';
import { httpHandlerKeys, toHttpHandler } from '../../../src/config/http-handler.js';
import { systemClock } from '../../../src/runtime/clock.js';
import { WebServer } from '../../support/web-server.js';
import { inboxMessage } from '../inbox/inbox-message.js';

const SECRETS = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD'];

test('the secret file is read at each attempt: missing it is the consumer, and replacing it needs no restart', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'waybill-secret-'));
  const secretFile = join(folder, 'secret');
  const server = await WebServer.start();
  const raw = { url: server.url(), secretFile };
  const handler = httpHandler(toHttpHandler(z.strictObject(httpHandlerKeys).parse(raw)), systemClock);
  const handle = () => handler.handle(inboxMessage(), new AbortController().signal);
  try {
    const missing = { kind: 'broken', error: `The secret file ${secretFile} cannot be read (ENOENT).` };
    expect(await handle()).toEqual(missing);
    for (const secret of SECRETS) {
      writeFileSync(secretFile, `${secret}\n`);
      expect(await handle()).toEqual({ kind: 'done' });
    }
    const [first, second] = server.received.map(({ headers }) => headers['webhook-signature']);
    expect(first).toMatch(/^v1,/);
    expect(second).not.toBe(first);
    const sent = Number(server.received[0]?.headers['webhook-timestamp']);
    expect(Math.abs(sent - Date.now() / 1_000)).toBeLessThan(60);
  } finally {
    handler.close();
    await server.stop();
    rmSync(folder, { recursive: true });
  }
});
