import { expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.js';
import { checkHostNames, checkListen, hostNames, isLoopback, parseListen } from '../../../src/config/listen.js';

it.each([
  ['127.0.0.1:9809', { host: '127.0.0.1', port: 9809 }, true],
  ['127.9.9.9:0', { host: '127.9.9.9', port: 0 }, true],
  ['localhost:80', { host: '127.0.0.1', port: 80 }, true],
  ['[::1]:9809', { host: '::1', port: 9809 }, true],
  ['0.0.0.0:9809', { host: '0.0.0.0', port: 9809 }, false],
  ['[::]:9809', { host: '::', port: 9809 }, false],
  ['[::ffff:127.0.0.1]:1', { host: '::ffff:127.0.0.1', port: 1 }, false],
  ['10.0.0.7:65535', { host: '10.0.0.7', port: 65_535 }, false],
])('%s is an address', (text, address, loopback) => {
  expect(parseListen(text)).toEqual(address);
  expect(checkListen(text)).toEqual({ value: text });
  expect(isLoopback(address)).toBe(loopback);
});

it.each([
  '9809',
  ':9809',
  '127.0.0.1',
  '127.0.0.1:',
  '127.0.0.1:65536',
  '::1:9809',
  '[127.0.0.1]:80',
  'host:80',
  '',
  9809,
])('%s is no address', (text) => expect(checkListen(text)).toHaveProperty('problem'));

it('off is said as a word or as YAML says it', () => {
  expect(checkListen('off')).toEqual({ value: 'off' });
  expect(checkListen(false)).toEqual({ value: 'off' });
  expect(parseListen('off')).toBeUndefined();
});

it('host names are a list', () => {
  expect(hostNames(' Waybill.internal, metrics,')).toEqual(['waybill.internal', 'metrics']);
  expect(checkHostNames('waybill.internal, metrics')).toHaveProperty('value');
  expect(checkHostNames('http://waybill')).toHaveProperty('problem');
  expect(checkHostNames('waybill:9809')).toHaveProperty('problem');
});

it('security: open to other machines is refused without a token file', () => {
  const load = (admin: Record<string, string>) =>
    loadConfig({
      environment: { WAYBILL_DATABASE_URL: 'postgres://localhost/a', WAYBILL_BROKER_URL: 'amqp://localhost', ...admin },
      readFile: () => '',
    }).admin;
  expect(load({})).toMatchObject({ listen: { host: '127.0.0.1', port: 9809 }, tokenFile: undefined });
  expect(load({ WAYBILL_ADMIN_LISTEN: 'off' }).listen).toBeUndefined();
  expect(() => load({ WAYBILL_ADMIN_LISTEN: '0.0.0.0:9809' })).toThrow('admin.tokenFile');
  expect(() => load({ WAYBILL_ADMIN_LISTEN: '[::]:9809' })).toThrow('admin.tokenFile');
  const both = { WAYBILL_ADMIN_LISTEN: '0.0.0.0:9809', WAYBILL_ADMIN_TOKEN_FILE: '/run/token' };
  expect(load(both)).toMatchObject({ listen: { host: '0.0.0.0', port: 9809 }, tokenFile: '/run/token' });
});
