import { expect, test } from 'vitest';
import { WaybillError } from '../../../src/core/errors.js';
import { replyCode, toBrokerError } from '../../../src/rabbitmq/errors.js';

const withCode = (message: string, code: number | string): Error => Object.assign(new Error(message), { code });

test.each([
  [
    'F83: wrong password',
    new Error('Handshake terminated by server: 403 (ACCESS-REFUSED) with message "ACCESS_REFUSED - Login was refused"'),
    'WAYBILL_BROKER_REFUSED',
  ],
  [
    'F84: no such vhost',
    new Error('Expected ConnectionOpenOk; got <ConnectionClose channel:0>'),
    'WAYBILL_BROKER_REFUSED',
  ],
  [
    'F82: no permission',
    withCode('Channel closed by server: 403 (ACCESS-REFUSED) with message "ACCESS_REFUSED - access to exchange"', 403),
    'WAYBILL_BROKER_REFUSED',
  ],
  ['F90: other arguments', withCode('PRECONDITION_FAILED - inequivalent arg', 406), 'WAYBILL_TOPOLOGY_MISMATCH'],
  ['F72: over a message', withCode('Connection closed: 541 (INTERNAL-ERROR)', 541), 'WAYBILL_CONNECTION_CLOSED'],
  ['F85: expired', withCode('certificate has expired', 'CERT_HAS_EXPIRED'), 'WAYBILL_SERVER_UNTRUSTED'],
  ['F92: closed by an operator', withCode('CONNECTION_FORCED', 320), 'WAYBILL_BROKER_UNAVAILABLE'],
  ['F68: refused', withCode('connect ECONNREFUSED 127.0.0.1:5672', 'ECONNREFUSED'), 'WAYBILL_BROKER_UNAVAILABLE'],
  ['F86: heartbeat', new Error('Heartbeat timeout'), 'WAYBILL_BROKER_UNAVAILABLE'],
  ['anything', 'gone', 'WAYBILL_BROKER_UNAVAILABLE'],
])('%s', (_what, cause, code) => {
  const error = toBrokerError(cause, 'connecting');
  expect(error).toMatchObject({ code, cause });
  expect(error.message).toMatch(/^connecting: /);
});

test('an error of ours passes unchanged', () => {
  const error = new WaybillError('WAYBILL_LOCK_TAKEN', 'x');
  expect(toBrokerError(error, 'y')).toBe(error);
});

test('a reply code is a number; a socket has none', () => {
  expect(replyCode(withCode('x', 404))).toBe(404);
  expect(replyCode(withCode('x', 'EPIPE'))).toBeUndefined();
  expect(replyCode(undefined)).toBeUndefined();
});
