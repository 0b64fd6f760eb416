// Asks a project what stands on standard input, with supabase-js, and prints what came back, question by question.
// What a step is called is what supabase-py calls it.

import { createClient } from '@supabase/supabase-js'
import { readFileSync } from 'node:fs'

const { url, key, users, questions } = JSON.parse(readFileSync(0, 'utf8'))
let heard

async function hearing(address, request) {
  const response = await fetch(address, request)
  const body = await response.clone().text()
  heard = { status: response.status, headers: Object.fromEntries(response.headers), body }
  return response
}

const clients = Object.fromEntries(Object.entries(users).map(([who, token]) => [who, createClient(url, who === 'secret' ? token : key, {
  realtime: { transport: class {} }, // without it Node.js 20 does not even begin
  auth: { persistSession: false, autoRefreshToken: false },
  global: { fetch: hearing, headers: who === 'anon' || who === 'secret' ? {} : { Authorization: `Bearer ${token}` } },
})]))

const camel = (name) => name.replace(/_$/, '').replace(/_(.)/g, (_, letter) => letter.toUpperCase())
const inside = (table) => (table ? { referencedTable: table } : undefined)
const special = {
  not_: (asked, [column, operator, value]) => asked.not(column, operator, value),
  or_: (asked, [filters, table]) => asked.or(filters, inside(table)),
  order: (asked, [column, ascending, nullsFirst, table]) => asked.order(column, { ascending, nullsFirst: nullsFirst ?? undefined, ...inside(table) }),
  limit: (asked, [count, table]) => asked.limit(count, inside(table)),
  range: (asked, [from, to, table]) => asked.range(from, to, inside(table)),
  text_search: (asked, [column, words, type, config]) => asked.textSearch(column, words, { type: type === 'web_search' ? 'websearch' : type ?? undefined, config: config ?? undefined }),
}
const ranged = /^range_/

function step(asked, [name, ...given]) {
  if (special[name]) return special[name](asked, given)
  if (ranged.test(name)) return asked[camel(name)](given[0], `(${given[1].join(',')})`)
  return asked[camel(name)](...given)
}

const answers = []
for (const { who, table, select, count, head, steps } of questions) {
  const asked = steps.reduce(step, clients[who].from(table).select(select, { count: count ?? undefined, head }))
  const { data, count: counted, error } = await asked
  answers.push({ ...heard, said: JSON.stringify({ data, count: counted, error }) })
}
console.log(JSON.stringify(answers))
