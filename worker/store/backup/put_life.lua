-- Redis has the data of a backup from now on, beside that which it had. The backup's ID replaces Redis's own,
-- because an older release compares only that one.
-- ask: {life: of the backup, merged: {life of each backup that was merged before it, ...}}
-- Answers nothing.
local ask = cjson.decode(ARGV[1])
local former = redis.call('GET', 'backups:life')
for _, life in ipairs({former or ask.life, unpack(ask.merged)}) do
  if life ~= ask.life then redis.call('SADD', 'backups:merged', life) end
end
redis.call('SET', 'backups:life', ask.life)
