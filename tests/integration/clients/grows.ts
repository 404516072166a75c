// Reads answers with an enum value that the client does not know, with the schemas that hey-api makes for zod.
import { readFileSync } from 'node:fs'
import * as schemas from './zod/zod.gen.ts'

const read: Record<string, unknown> = {}
for (const [name, body] of Object.entries(JSON.parse(readFileSync('answers.json', 'utf8')))) {
  read[name] = (schemas as any)[`z${name}`].parse(body)
}
console.log(JSON.stringify(read))
