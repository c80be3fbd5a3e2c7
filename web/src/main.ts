import { mount } from 'svelte'
import './app.css'
import './print.css'
import App from './App.svelte'
import { watch } from './lib/hover'

watch()
const target = document.getElementById('app')
target?.replaceChildren()  // the shell that is there before this program
if (target) mount(App, { target })
