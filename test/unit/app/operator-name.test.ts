import { describe, expect, it } from 'vitest';
import { operatorName } from '../../../src/app/operator-name.js';

const named = (environment: Record<string, string>, user = 'ann') => operatorName(environment, () => user, 'db-1');

describe('who calls the program', () => {
  it.each([
    [{}, 'ann', 'ann@db-1'],
    [{ SUDO_USER: 'bob' }, 'root', 'bob as root@db-1'],
    [{ SUDO_USER: 'root' }, 'root', 'root@db-1'],
    [{ WAYBILL_OPERATOR: 'carol', SUDO_USER: 'bob' }, 'root', 'carol@db-1'],
    [{ WAYBILL_OPERATOR: '' }, 'uid 1000', 'uid 1000@db-1'],
  ])('%j as %s: %s', (environment, user, expected) => {
    expect(named(environment, user)).toBe(expected);
  });

  it('has nothing that a terminal obeys, one line and an end', () => {
    const text = named({ WAYBILL_OPERATOR: `a\u001b[2Jb\nc${'d'.repeat(500)}` });
    expect(text).not.toContain('\u001b');
    expect(text).not.toContain('\n');
    expect(text.length).toBeLessThanOrEqual(150);
  });

  it('the system has a user for this process', () => {
    expect(operatorName({})).toMatch(/^.+@.+$/);
  });
});
