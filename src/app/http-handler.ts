import { readFileSync } from 'node:fs';
import type { HttpHandlerConfig } from '../config/http-handler.js';
import { WaybillError } from '../core/errors.js';
import { HttpHandler } from '../inbox/http-handler.js';
import { knownSecrets } from '../telemetry/redact.js';
import { unixMs, type Clock } from '../runtime/clock.js';
import { tlsOptions } from './endpoints.js';

/** The HTTP handler of a consumer, with its files. They are read at each attempt, so that rotation needs no restart. */
export function httpHandler(config: HttpHandlerConfig, clock: Clock): HttpHandler {
  const { url, timeoutMs, concurrency, rate, allow, retryAfterCapMs, secretFile, tls } = config;
  return new HttpHandler({
    url,
    timeoutMs,
    concurrency,
    rate,
    allow,
    retryAfterCapMs,
    secrets: secretFile === undefined ? undefined : () => readSecrets(secretFile),
    tls: () => tlsOptions(tls) ?? {},
    unixMs,
    clock,
  });
}

function readSecrets(path: string): string {
  try {
    const text = readFileSync(path, 'utf8');
    // Also what the signature is made with, and a file that holds something else than it should.
    knownSecrets.add(text.split(/\r?\n/).flatMap((line) => [line.trim(), line.trim().replace(/^whsec_/, '')]));
    return text;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    throw new WaybillError('WAYBILL_CONFIG_INVALID', `The secret file ${path} cannot be read (${code}).`, {
      hint: 'Check handler.secretFile and the rights of the user that runs Waybill.',
      cause: error,
    });
  }
}
